"""Runs of a comparison in this process, without the seconds that a process takes to start."""

import pytest

from cupola.cli import main
from cupola.compare import comparing, sweeping
from cupola.compare.fleet import Outcome


@pytest.fixture
def here(monkeypatch):
    """Titles of the jobs that were run; those whose title holds a word of `failing` fail instead."""

    class Here:
        def __init__(self):
            self.ran, self.failing = [], set()

        def run_jobs(self, jobs, at_once, display):
            outcomes = {}
            for job in jobs:
                self.ran.append(job.title)
                if any(word in job.title for word in self.failing):
                    outcomes[job.folder] = Outcome("failed", "error: out of luck")
                    continue
                arguments = ["run", str(job.recipe), "--out", str(job.folder), "--no-check", *job.options]
                assert main(arguments) == 0
                outcomes[job.folder] = Outcome("done")
            return outcomes

    found = Here()
    monkeypatch.setattr(comparing, "run_jobs", found.run_jobs)
    monkeypatch.setattr(sweeping, "run_jobs", found.run_jobs)
    return found
