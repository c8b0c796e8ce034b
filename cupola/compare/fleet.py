"""Several runs at once, each a process of its own: started, watched, stopped.

Guarantees: the first Ctrl-C or SIGTERM reaches every process once and each saves its step; a second one stops
them at once; if this process is killed, they stop by themselves (`tether`). One that fails does not stop the
others. Costs: a look at each process and at the end of its metrics, twice a second.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cupola.display import Display, Task, count
from cupola.errors import Interrupted
from cupola.machine import usable_cores
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Recipe
from cupola.train.stopping import StopRequest

SECONDS_BETWEEN_LOOKS = 0.5
TAIL_BYTES = 16_384  # of the metrics, in which the last whole line lies
INTERRUPTED = Interrupted.exit_status
"""Of a process that was asked to stop; before it trains, the signal itself ends it."""


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        title: for people.
        recipe: the file that it runs.
        folder: of the run.
        log: where its output goes.
        options: of `cupola run`, beside recipe and folder.
        total: tokens of it, if known.
    """

    title: str
    recipe: Path
    folder: Path
    options: tuple[str, ...] = ()
    total: int | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Outcome:
    """How a process ended; `why` is its last line where it failed."""

    status: Literal["done", "failed", "interrupted"]
    why: str = ""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    begin: int
    task: Task
    bar: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def horizon(recipe: Recipe, until: str | None, share: float = 1.0) -> int | None:
    """Tokens of the stages up to `until`, of the last a share; None where a stage counts in epochs."""
    names = list(recipe.stages)
    total = 0
    for name in names[: names.index(until) + 1 if until else len(names)]:
        stage = recipe.stages[name]
        if stage.tokens is None or stage.tokens.unit == "epochs":
            return None
        last = Clock(stage).total
        total += last
    return total - round(last * (1 - share)) if names else None


def threads_each(jobs: int) -> int:
    """A process's share of the threads: of OMP_NUM_THREADS, where somebody set it, else of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(given) if given.isdigit() else usable_cores()) // jobs)


def run_jobs(jobs: Sequence[Job], at_once: int, display: Display) -> dict[Path, Outcome]:
    """Do the jobs, so many at once.

    Returns:
        Folder -> how it ended, of every job.

    Raises:
        Interrupted: by a signal; what runs has been asked to save, and has ended.
    """
    waiting, running = list(jobs), list[_Running]()
    outcomes: dict[Path, Outcome] = {}
    threads = threads_each(max(1, min(at_once, len(jobs))))
    with display.task("runs", total=len(jobs), unit="runs") as whole, StopRequest(display) as stop:
        told = False
        try:
            while running or (waiting and not stop.asked):
                while waiting and len(running) < at_once and not stop.asked:
                    running.append(_start(waiting.pop(0), threads, display))
                if stop.asked and not told:
                    told = True
                    _signal(running)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for one in [one for one in running if _look(one)]:
                    running.remove(one)
                    outcome = outcomes[one.job.folder] = _end(one, display)
                    if outcome.status == "done":
                        whole.advance()
                    whole.note(f"{one.job.title}: {outcome.status}")
        except KeyboardInterrupt:  # the second
            _signal(running)
        finally:
            _leave(running)
        if stop.asked:
            done = sum(outcome.status == "done" for outcome in outcomes.values())
            raise Interrupted(
                f"stopped with {done} of {len(jobs)} runs done; the others are saved where they were, and the"
                " same command goes on"
            )
    return outcomes


def _start(job: Job, threads: int, display: Display) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cupola.compare.tether", "run", str(job.recipe)]
    command += ["--out", str(job.folder), *job.options]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with job.log.open("ab") as log:
        log.write(f"-- {time.strftime('%Y-%m-%d %H:%M:%S')} cupola {' '.join(command[3:])}\n".encode())
        log.flush()
        begin = log.tell()
        # A session of its own: a terminal's Ctrl-C would reach it beside what is sent from here.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    bar = contextlib.ExitStack()
    task = bar.enter_context(display.task(job.title, total=job.total, unit="tokens"))
    return _Running(job, process, begin, task, bar)


def _look(one: _Running) -> bool:
    """Show how far it is; whether it has ended."""
    ended = one.process.poll() is not None
    position = 0
    row: dict[str, Any] = {}
    for path in sorted(one.job.folder.glob("stages/[0-9]*-*/metrics.jsonl")):
        row = last_row(path) or row
        position += int(row.get("tokens") or 0)
    if row:
        one.task.at(position)
        loss = row.get("loss")
        speed = count(row.get("tokens_per_second") or 0.0)
        one.task.note(f"loss {loss:.3f}  {speed} tokens/s" if loss is not None else "")
    return ended


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line of a file of JSON lines that somebody else may be writing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        value = json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _end(one: _Running, display: Display) -> Outcome:
    one.bar.close()
    if one.process.stdin:
        one.process.stdin.close()
    status = one.process.returncode
    if status == 0:
        return Outcome("done")
    why = _last_words(one.job.log, one.begin) or f"ended with status {status}"
    if status < 0:
        why = f"was ended by signal {signal.Signals(-status).name}"
    if status in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        return Outcome("interrupted", why)
    display.warn(f"{one.job.title}: {why} ({one.job.log})")
    return Outcome("failed", why)


def _last_words(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _signal(running: Sequence[_Running]) -> None:
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            one.process.send_signal(signal.SIGINT)


def _leave(running: Sequence[_Running]) -> None:
    """Whatever ended the watch: no process is left behind."""
    for one in running:
        if one.process.stdin:
            one.process.stdin.close()  # by which it stops
        one.process.wait()
        one.bar.close()
