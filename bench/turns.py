"""Contenders that take turns: each a process that lives for the whole measurement (`bench.worker`), so that a
machine that slows down slows all of them."""

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.shapes import Shape

ROOT = Path(__file__).resolve().parent.parent
OURS = "cupola"


class Worker:
    """A contender's process.

    Args:
        spec: what it is told; `worker` names another module than `bench.worker`.
    """

    def __init__(self, name: str, compiled: bool, spec: dict[str, Any]) -> None:
        self.name = f"{name} compiled" if compiled else name
        self.ours = name == OURS
        self.parameters = self.steps = 0
        self.first_seconds = math.nan
        self.ready: dict[str, Any] = {}
        self.turns: list[dict[str, Any]] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                spec.get("worker", "bench.worker"),
                json.dumps({**spec, "contender": name, "compiled": compiled}),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if spec["show_errors"] else self.errors,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """The next line, or `failed` with the last line of its errors."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit status {status}"}

    def run(self, steps: int) -> dict[str, Any]:
        """Train for `steps` steps and wait."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; `answer` says why
            self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def spec_of(shape: Shape, options: dict[str, Any], show_errors: bool = False) -> dict[str, Any]:
    """What every worker of a measurement is told."""
    same = {key: options[key] for key in ("precision", "threads", "device")}
    return {"shape": dataclasses.asdict(shape), "show_errors": show_errors, **same}


def take_turns(workers: list[Worker], rounds: int, before_each: Callable[[], None] | None = None) -> None:
    """So many rounds in which each worker has its turn, another one first each time; then all are closed.

    Args:
        before_each: called before each round.
    """
    for number in range(rounds):
        if before_each is not None:
            before_each()
        shift = number % max(1, len(workers))
        for worker in workers[shift:] + workers[:shift]:
            answer = worker.run(worker.steps)
            if "seconds" not in answer:
                raise click.ClickException(f"{worker.name} {answer}")
            worker.turns.append(answer)
    for worker in workers:
        worker.close()


def start(
    names: list[tuple[str, bool]], spec: dict[str, Any], turn_seconds: float
) -> tuple[list[Worker], dict]:
    """The workers that are there, warmed up, each with the steps of its turn; and why the others are not."""
    ready, missing = [], {}
    for name, compiled in names:
        worker = Worker(name, compiled, spec)
        answer = worker.answer()
        if "parameters" in answer:
            worker.ready, worker.parameters = answer, answer["parameters"]
            answer = first = worker.run(1)
        if "seconds" in answer:
            answer = worker.run(1)
        if "seconds" not in answer:
            missing[worker.name] = answer.get("absent") or f"failed: {answer.get('failed')}"
            worker.close()
            continue
        worker.first_seconds = first["seconds"]
        worker.steps = max(1, math.ceil(turn_seconds / answer["seconds"]))
        ready.append(worker)
    return ready, missing
