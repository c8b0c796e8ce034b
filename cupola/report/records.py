"""What a run's folder holds, read for the report.

Tolerant: a missing file is an empty one, a line that a kill tore is counted and passed over, a field that
is absent or not finite is a gap. Metrics are kept as columns of numbers (8 bytes a value), so that a run of
a million steps fits in about 100 MB.
"""

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cupola import json_lines

COLUMNS = (
    "step",
    "tokens",
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "mfu",
    "flops",
    "batch_tokens",
    "sequence_length",
    "memory_bytes",
    "seconds",
)
LISTS = ("evaluations", "samples", "health")
"""The other files of rows."""


@dataclass
class StageRecords:
    """One stage: its facts, its metrics as columns, and what was evaluated, written and seen on the way.

    Attributes:
        columns: name -> float64 (steps,), NaN where a row lacks the value.
        shares: source -> float64 (steps,), 0 where a row does not name the source.
        offset: tokens of the stages before it.
        torn: lines that could not be read.
    """

    name: str
    facts: dict[str, Any]
    columns: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    health: list[dict[str, Any]] = field(default_factory=list)
    offset: float = 0.0
    torn: int = 0

    @property
    def steps(self) -> int:
        """Rows of the metrics."""
        return len(self.columns["step"])

    @property
    def position(self) -> np.ndarray:
        """Tokens seen by the run at each row, the stages before included."""
        return self.offset + self.columns["tokens"]

    @property
    def tokens(self) -> float:
        """Tokens of the stage so far."""
        if self.steps and math.isfinite(self.columns["tokens"][-1]):
            return float(self.columns["tokens"][-1])
        return float(self.facts.get("tokens") or 0)

    def place(self, row: dict[str, Any]) -> float:
        """Tokens seen by the run at the step that a row of evaluations or samples names; NaN if unknown."""
        steps = self.columns["step"]
        at = int(np.searchsorted(steps, row["step"])) if _finite(row.get("step")) else len(steps)
        if at < len(steps) and steps[at] == row["step"]:
            return float(self.position[at])
        return math.nan

    @property
    def heldout(self) -> dict[str, float]:
        """Source -> bits per byte, of the newest evaluation."""
        return heldout_by_source(self.evaluations[-1]) if self.evaluations else {}


@dataclass
class RunRecords:
    """Everything the report shows."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    ledger: list[dict[str, Any]] = field(default_factory=list)
    stages: list[StageRecords] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.facts.get("name") or self.folder.resolve().name)

    @property
    def torn(self) -> int:
        """Lines that could not be read."""
        return sum(stage.torn for stage in self.stages)


def read_records(folder: Path) -> RunRecords:
    """Read a run's folder, finished or not."""
    records = RunRecords(folder, facts=_object(folder / "run.json"))
    if (folder / "recipe.yaml").is_file():
        records.recipe = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    records.ledger = json_lines.read_whole(folder / "ledger.jsonl")
    offset = 0.0
    for path in sorted(folder.glob("stages/[0-9]*-*")):
        stage = _read_stage(path)
        stage.offset = offset
        offset += stage.tokens
        records.stages.append(stage)
    return records


def heldout_by_source(evaluation: dict[str, Any]) -> dict[str, float]:
    """Source -> bits per byte of one evaluation, which gives a number or an object for each source."""
    sources = evaluation.get("sources") or {}
    return finite_figures(
        {k: v.get("bits_per_byte") if isinstance(v, dict) else v for k, v in sources.items()}
    )


def finite_figures(figures: dict[str, Any]) -> dict[str, float]:
    """Those that are numbers; a source without held-out text has none."""
    return {str(name): float(figure) for name, figure in figures.items() if _finite(figure)}


def _read_stage(path: Path) -> StageRecords:
    torn = 0
    columns = {name: array("d") for name in COLUMNS}
    shares: dict[str, array] = {}
    rows = 0
    for row in json_lines.read(path / "metrics.jsonl"):
        if row is None:
            torn += 1
            continue
        for name, column in columns.items():
            value = row.get(name)
            column.append(float(value) if _finite(value) else math.nan)
        for source, share in (row.get("shares") or {}).items():
            column = shares.setdefault(source, array("d", bytes(8 * rows)))
            column.append(float(share) if _finite(share) else 0.0)
        rows += 1
        for column in shares.values():
            if len(column) < rows:
                column.append(0.0)
    read = {name: list(json_lines.read(path / f"{name}.jsonl")) for name in LISTS}
    return StageRecords(
        name=path.name.partition("-")[2],
        facts=_object(path / "stage.json"),
        columns={name: np.array(column) for name, column in columns.items()},
        shares={source: np.array(column) for source, column in shares.items()},
        evaluations=[row for row in read["evaluations"] if row is not None],
        samples=[row for row in read["samples"] if row is not None],
        health=[row for row in read["health"] if row is not None],
        torn=torn + sum(row is None for rows in read.values() for row in rows),
    )


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
