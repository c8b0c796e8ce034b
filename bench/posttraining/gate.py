"""Turns within a training that somebody else runs: after each step it asks whether another one is wanted.

Both sides train by a loop of their own, Cupola's and TRL's, and are asked for some steps at a time, so that
they can take turns. What they do is as it would be without: the loop goes on where it waited.
"""

import json
import sys
import time
from typing import IO, Any

import torch

from cupola.parallel.device import peak_memory


class Gate:
    """Reads `{"steps": 3}` lines, and answers each with what those steps came to, when they are done.

    Args:
        answers: where answers go.
        units: of one step, in the unit that is counted (tokens, completions).
    """

    def __init__(self, answers: IO[str], units: float) -> None:
        self.answers, self.units = answers, units
        self.left = 0
        self.ends: list[float] = []
        self.cpu = 0.0
        self.figures: dict[str, list[float]] = {}

    def say(self, **facts: Any) -> None:
        """One line to who asks."""
        print(json.dumps(facts), file=self.answers)

    def wait(self) -> None:
        """Until steps are asked for.

        Raises:
            SystemExit: no more will be.
        """
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self.left = json.loads(line)["steps"]
        self.figures = {}
        self.ends, self.cpu = [time.perf_counter()], time.process_time()

    def done(self, **figures: float) -> None:
        """A step is done; waits, where it was the last one asked for."""
        self.ends.append(time.perf_counter())
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)
        self.left -= 1
        if self.left == 0:
            steps = len(self.ends) - 1
            self.say(
                seconds=self.ends[-1] - self.ends[0],
                cpu_seconds=time.process_time() - self.cpu,
                units=self.units * steps,
                figures={name: sum(values) / len(values) for name, values in self.figures.items()},
                peak_bytes=peak_memory(torch.device("cpu")),
            )
            self.wait()
