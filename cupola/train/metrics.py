"""What a run measured: one JSON line a step, and the same numbers for TensorBoard.

Guarantees: after a crash every line but perhaps the last is whole, and a torn last line is passed over; on
resume the lines after the checkpoint are cut away, so that each step is there once.
Costs: a write and a flush a step (the kernel has the line then: a killed process loses none); the disk is
waited for only in `sync`, which the loop calls before it saves a checkpoint, so that no checkpoint is ever
newer than its metrics. TensorBoard is imported when the first row is written, not before.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from cupola import json_lines, storage
from cupola.errors import CupolaError
from cupola.json_lines import Record

LAST_SHARE = 0.05
CURVES_LEFT_OUT = ("step", "global_step", "seconds", "whole")


def cut_back(path: Path, step: int) -> int:
    """Remove the rows after a step, and a torn last line, by one rename.

    Returns:
        The number of whole rows that were removed.
    """
    if not path.exists():
        return 0
    rows = json_lines.read_whole(path)
    kept = [row for row in rows if row["step"] <= step]
    storage.write_text(path, "".join(f"{json_lines.as_line(row)}\n" for row in kept))
    return len(rows) - len(kept)


class MetricsWriter:
    """Appends rows to a file and, if a folder is given, to TensorBoard's event files.

    Args:
        path: the JSON lines; on resume cut it back first.
        tensorboard: folder of event files, or None.
        stage: prefix of the curves' names, so that each stage has its own.
        global_step: steps of the run before the next row; TensorBoard forgets what it has after that.
    """

    def __init__(
        self, path: Path, tensorboard: Path | None = None, stage: str = "", global_step: int = 0
    ) -> None:
        self.path, self.stage = path, stage
        self._tensorboard, self._global_step = tensorboard, global_step
        self._curves: Any = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise CupolaError(f"{path}: cannot be written ({error.strerror})") from error

    def write(self, row: Record) -> None:
        """Append one row; it needs `step` and `global_step`.

        Raises:
            CupolaError: the disk is full or not writable.
        """
        try:
            self._file.write(json_lines.as_line(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise CupolaError(f"{self.path}: cannot be written ({error.strerror})") from error
        self.draw("", row, row["global_step"])

    def draw(self, title: str, figures: Record, global_step: int) -> None:
        """Give the numbers among some figures, nested or not, to TensorBoard, each as a curve of its own."""
        if self._tensorboard is None:
            return
        if self._curves is None:
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(
                str(self._tensorboard), purge_step=self._global_step + 1, flush_secs=20
            )
        for name, value in figures.items():
            path = f"{title}/{name}" if title else name
            if isinstance(value, dict):
                self.draw(path, value, global_step)
            elif isinstance(value, int | float) and name not in CURVES_LEFT_OUT:
                self._curves.add_scalar(f"{self.stage}/{path}", value, global_step)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CupolaError(f"{self.path}: cannot be written ({error.strerror})") from error
        if self._curves is not None:
            self._curves.flush()

    def close(self) -> None:
        """Write out and close both."""
        with contextlib.suppress(OSError):  # a full disk has been reported by what was written
            self._file.close()
        if self._curves is not None:
            with contextlib.suppress(OSError):
                self._curves.close()


def final_loss(rows: list[Record]) -> float | None:
    """`mean_of_last` of the steps that made an update; None if there was none."""
    updates = [row for row in rows if row.get("loss") is not None and not row.get("skipped")]
    loss, tokens, batch = (
        np.array([row[name] for row in updates]) for name in ("loss", "tokens", "batch_tokens")
    )
    return mean_of_last(loss, tokens, batch)


def mean_of_last(loss: np.ndarray, tokens: np.ndarray, batch_tokens: np.ndarray) -> float | None:
    """The mean loss over the last part of a stage, each step weighted by its tokens; None without steps.

    The steps that begin in the last `LAST_SHARE` of the positions count, and the very last in any case.

    Args:
        loss, tokens, batch_tokens: (steps,) each; `tokens` is the position after the step.
    """
    if not len(loss):
        return None
    last = tokens - batch_tokens >= (1 - LAST_SHARE) * tokens[-1]
    last[-1] = True
    return float(np.average(loss[last], weights=batch_tokens[last]))
