"""What the runs of a comparison came to, read from their own files.

FLOPs are the model's (`models.table`), each batch by the length of its rows, forward and backward; seconds
are of training alone, as the metrics count them. Of a run of several stages, tokens, FLOPs and seconds are of
all that count, loss and held-out figures of the last.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cupola.compare.folder import is_done, stage_folders
from cupola.compare.variants import Planned
from cupola.models import table
from cupola.recipe.model import Model
from cupola.report import RunRecords, read_records
from cupola.report.page import final_loss
from cupola.report.records import StageRecords


@dataclass(frozen=True)
class Curve:
    """One run against what it cost; every array (points,), float64.

    Attributes:
        loss, heldout: nats a token at each step; bits per byte at each evaluation.
        whole: whether an evaluation read all held-out text.
        axes, heldout_axes: "tokens", "FLOPs", "seconds" -> how much had been spent by then.
    """

    loss: np.ndarray
    axes: dict[str, np.ndarray]
    heldout: np.ndarray
    whole: np.ndarray
    heldout_axes: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunResult:
    """One run of a comparison; `why` says what ended it early."""

    planned: Planned
    folder: Path
    status: str
    why: str
    figures: dict[str, float | None]
    curve: Curve
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For `comparison.json`."""
        status = {"seed": self.planned.seed, "run": str(self.folder), "status": self.status}
        return {**status, **({"why": self.why} if self.why else {}), **self.figures}


@dataclass(frozen=True)
class Spread:
    """A figure over seeds; `deviation` is the sample standard deviation, None of a single value."""

    mean: float
    deviation: float | None
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None without values."""
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, min(values), max(values), len(values))


@dataclass
class VariantResult:
    """The runs of one variant, over its seeds; figures are of those that are done."""

    name: str
    settings: tuple[str, ...]
    source: str
    runs: list[RunResult] = field(default_factory=list)

    @property
    def done(self) -> list[RunResult]:
        """The runs that count."""
        return [run for run in self.runs if run.status == "done"]

    def spread(self, figure: str) -> Spread | None:
        """Of one figure, over the runs that are done and have it."""
        values = [run.figures[figure] for run in self.done]
        return Spread.of([value for value in values if value is not None])

    def difference(self, other: "VariantResult", figure: str = "bits_per_byte") -> Spread | None:
        """Of a figure from another variant's, seed by seed, since runs of one seed see the same text."""
        theirs = {run.planned.seed: run.figures[figure] for run in other.done}
        pairs = [(run.figures[figure], theirs.get(run.planned.seed)) for run in self.done]
        return Spread.of([mine - their for mine, their in pairs if mine is not None and their is not None])


def read_run(planned: Planned, folder: Path, until: str | None, why: str) -> RunResult:
    """What a run came to so far.

    Args:
        why: what ended it, where it is not done.
    """
    records = read_records(folder)
    counted = {stage.name for stage in stage_folders(folder, planned.recipe, until)}
    records.stages = [stage for stage in records.stages if stage.name in counted]
    done = is_done(folder, planned.recipe, until)
    figures: dict[str, float | None] = {
        "parameters": records.facts.get("parameters"),
        "tokens": None,
        "flops": None,
        "seconds": None,
        "final_loss": None,
        "bits_per_byte": None,
    }
    curve = _curve(planned.recipe.model, records)
    if records.stages:
        last = records.stages[-1]
        figures["tokens"] = int(sum(stage.tokens for stage in records.stages))
        figures["flops"] = float(curve.axes["FLOPs"][-1]) if len(curve.loss) else 0.0
        figures["seconds"] = float(curve.axes["seconds"][-1]) if len(curve.loss) else 0.0
        figures["final_loss"] = final_loss(last)
        figures["bits_per_byte"] = last.facts.get("heldout_bits_per_byte") if done else None
    status = "done" if done else "failed" if why else "unfinished"
    return RunResult(planned, folder, status, "" if done else why, figures, curve, records.facts)


def _curve(model: Model, records: RunRecords) -> Curve:
    """The stages one after the other."""
    vocabulary = records.facts.get("vocabulary")
    spent = {"tokens": 0.0, "FLOPs": 0.0, "seconds": 0.0}
    steps: dict[str, list[np.ndarray]] = {axis: [] for axis in spent}
    looks: dict[str, list[np.ndarray]] = {axis: [] for axis in spent}
    losses, heldout, whole = [], [], []
    for stage in records.stages:
        costs = {
            "tokens": np.nan_to_num(stage.columns["tokens"]),
            "FLOPs": np.cumsum(stage_flops(model, vocabulary, stage)),
            "seconds": np.cumsum(np.nan_to_num(stage.columns["seconds"])),
        }
        at = np.searchsorted(stage.columns["step"], [row.get("step", 0) for row in stage.evaluations])
        known = at < stage.steps
        for axis, cost in costs.items():
            steps[axis].append(spent[axis] + cost)
            looks[axis].append(spent[axis] + cost[at[known]])
            spent[axis] += float(cost[-1]) if len(cost) else 0.0
        losses.append(stage.columns["loss"])
        rows = [row for row, keep in zip(stage.evaluations, known, strict=True) if keep]
        heldout.append(np.array([_number(row.get("bits_per_byte")) for row in rows]))
        whole.append(np.array([bool(row.get("whole")) for row in rows], dtype=bool))
    return Curve(
        loss=_joined(losses),
        axes={axis: _joined(parts) for axis, parts in steps.items()},
        heldout=_joined(heldout),
        whole=_joined(whole).astype(bool),
        heldout_axes={axis: _joined(parts) for axis, parts in looks.items()},
    )


def stage_flops(model: Model, vocabulary: int | None, stage: StageRecords) -> np.ndarray:
    """(steps,) FLOPs of each step: what the row states, else its tokens by the length of its rows."""
    stated = stage.columns["flops"]
    if vocabulary is None or np.isfinite(stated).all():
        return np.nan_to_num(stated)
    lengths = np.nan_to_num(stage.columns["sequence_length"]).astype(int)
    per_token = {
        length: table.flops_per_token(model, vocabulary, length) for length in set(lengths.tolist()) if length
    }
    each = np.array([per_token.get(length, 0.0) for length in lengths.tolist()])
    return np.where(np.isfinite(stated), stated, each * np.nan_to_num(stage.columns["batch_tokens"]))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def by_variant(results: Sequence[RunResult]) -> list[VariantResult]:
    """The runs under their variants, in the order of the grid."""
    found: dict[str, VariantResult] = {}
    for result in results:
        planned = result.planned
        own = found.setdefault(
            planned.variant, VariantResult(planned.variant, planned.settings, planned.source)
        )
        own.runs.append(result)
    return list(found.values())


def cautions(results: Sequence[RunResult]) -> list[str]:
    """What makes the figures of these runs less comparable than they look."""
    done = [result for result in results if result.status == "done"]
    lines = []
    for key, what in (("precision", "precision"), ("threads", "number of threads"), ("device", "device")):
        values = {result.facts.get("decisions", {}).get(key) for result in done}
        if len(values) > 1:
            cure = "; say --set precision=bf16 or fp32" if key == "precision" else ""
            lines.append(f"the runs differ in {what}: {', '.join(sorted(map(str, values)))}{cure}")
    texts = {
        tuple(sorted(held["sha256"] for held in result.facts.get("heldout", {}).values())) for result in done
    }
    if len(texts) > 1:
        lines.append("the held-out text is not the same for all: their bits per byte can't be compared")
    for variant in by_variant(results):
        if any(run.status != "done" for run in variant.runs):
            lines.append(
                f"{variant.name}: {len(variant.done)} of {len(variant.runs)} runs are done, and count"
            )
    return lines
