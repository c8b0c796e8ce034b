"""Predictions beside published values, row by row and by group."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.planner.predictors import Case, Prediction, Unpredicted, cases
from bench.planner.rows import Row
from bench.planner.table import predict
from bench.planner.timing import LONGER, TIME
from bench.planner.validation import constant_shares

LEAST = 4
"""Layouts of a sweep that can be ranked."""


@dataclass(frozen=True)
class Score:
    """A published value and what is predicted of it.

    Attributes:
        metric: None for a row that publishes nothing that can be read.
        reason: why there is no prediction; empty where there is one.
        constant: of a figure of time, what a constant share of the peak predicts of it.
        sweep: of a figure of time, what it can be compared with: model, devices, batch.
    """

    name: str
    group: str
    metric: str | None
    published: float | None
    prediction: Prediction | None
    reason: str = ""
    constant: float | None = None
    sweep: str = ""

    @property
    def constant_error(self) -> float | None:
        """Of the constant share, over published, less 1."""
        if self.constant is None or self.published is None or self.prediction is None:
            return None
        return self.constant / self.published - 1

    @property
    def error(self) -> float | None:
        """Predicted over published, less 1."""
        if self.prediction is None or self.published is None:
            return None
        return self.prediction.value / self.published - 1

    @property
    def inside(self) -> bool | None:
        """Whether the published value lies in the stated interval."""
        if self.prediction is None or self.published is None:
            return None
        # A count that is equal stays so whatever the last bits of a float do.
        slack = 1e-12 * self.published
        return self.prediction.low - slack <= self.published <= self.prediction.high + slack

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "group": self.group,
            "metric": self.metric,
            "published": self.published,
            "predicted": None,
            "low": None,
            "high": None,
        }
        if self.prediction is None:
            return found | {"reason": self.reason}
        made = self.prediction
        found |= {"predicted": made.value, "low": made.low, "high": made.high}
        if made.convention:
            found["convention"] = made.convention
        if self.constant is not None:
            found["constant"] = self.constant
        return found | ({"note": made.note} if made.note else {})


def scores(rows: Sequence[Row]) -> list[Score]:
    """A score of every metric of every row; what could not be read or predicted has its reason."""
    found = []
    shares = {id(one.row): share for one, share in constant_shares(rows)}
    for row in rows:
        own = [_score(case, shares.get(id(row))) for case in cases(row, rows)]
        own += [Score(row.name, row.group, key, None, None, said) for key, said in row.odd.items()]
        found += own or [Score(row.name, row.group, None, None, None, "the row publishes no metric")]
    return found


def _score(case: Case, slower: float | None) -> Score:
    """Args:
    slower: by how much a step takes longer at a constant share of the peak than was published.
    """
    row, constant = case.row, None
    if slower is not None and case.metric in TIME:
        constant = case.published * (slower if case.metric in LONGER else 1 / slower)
    try:
        return Score(
            row.name, row.group, case.metric, case.published, predict(case), "", constant, _sweep(case)
        )
    except Unpredicted as reason:
        return Score(row.name, row.group, case.metric, case.published, None, str(reason))


def _sweep(case: Case) -> str:
    if case.metric not in TIME:
        return ""
    keys = ("layers", "d_model", "seq", "hardware", "n_devices", "precision")
    said = [case.row.facts.get(key) for key in keys] + [case.row.extra.get("release")]
    return " ".join(map(str, said))


@dataclass(frozen=True)
class Group:
    """The errors of one metric in one group, in per cent; None where nothing is predicted.

    Attributes:
        rows, scored: published values, and those with a prediction.
        mean, median, worst: of the absolute errors.
        bias: the mean of the errors with their signs.
        inside: published values within the stated interval, of those scored.
        reasons: why the others aren't scored, and how many.
        constant: the mean of the absolute errors of a constant share of the peak; None but for time.
        ranked: Spearman's correlation of predicted and published, the lowest of the sweeps in it; None where
            there is no sweep.
    """

    group: str
    metric: str
    rows: int
    scored: int
    mean: float | None
    median: float | None
    worst: float | None
    bias: float | None
    inside: float | None
    reasons: dict[str, int]
    constant: float | None = None
    ranked: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "metric": self.metric,
            "rows": self.rows,
            "scored": self.scored,
            "mean_abs_error_pct": self.mean,
            "median_abs_error_pct": self.median,
            "worst_abs_error_pct": self.worst,
            "bias_pct": self.bias,
            "inside_pct": self.inside,
            "constant_mean_abs_error_pct": self.constant,
            "spearman": self.ranked,
            "not_scored": self.reasons,
        }


def groups(found: Iterable[Score]) -> list[Group]:
    """By group and metric, in the order of the file."""
    together: dict[tuple[str, str], list[Score]] = {}
    for score in found:
        together.setdefault((score.group, score.metric or "none"), []).append(score)
    return [_group(group, metric, own) for (group, metric), own in together.items()]


def _group(group: str, metric: str, own: Sequence[Score]) -> Group:
    errors = [100 * score.error for score in own if score.error is not None]
    inside = [score.inside for score in own if score.inside is not None]
    constant = [100 * abs(score.constant_error) for score in own if score.constant_error is not None]
    absolute = [abs(error) for error in errors]
    return Group(
        group,
        metric,
        len(own),
        len(errors),
        statistics.fmean(absolute) if absolute else None,
        statistics.median(absolute) if absolute else None,
        max(absolute) if absolute else None,
        statistics.fmean(errors) if errors else None,
        100 * sum(inside) / len(inside) if inside else None,
        dict(Counter(score.reason for score in own if score.prediction is None)),
        statistics.fmean(constant) if constant else None,
        _ranked(own),
    )


def _ranked(own: Sequence[Score]) -> float | None:
    """Of sweeps: the same model on as many devices, in at least four layouts."""
    sweeps: dict[str, list[Score]] = {}
    for score in own:
        if score.sweep and score.prediction is not None:
            sweeps.setdefault(score.sweep, []).append(score)
    found = [
        spearman([s.prediction.value for s in sweep if s.prediction], [s.published or 0.0 for s in sweep])
        for sweep in sweeps.values()
        if len(sweep) >= LEAST
    ]
    return min(found) if found else None


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of the ranks; equal values share theirs."""
    ranks = [[_rank(values, one) for one in values] for values in (first, second)]
    return statistics.correlation(*ranks) if min(map(len, map(set, ranks))) > 1 else 0.0


def _rank(values: Sequence[float], one: float) -> float:
    return sum(value < one for value in values) + sum(value == one for value in values) / 2
