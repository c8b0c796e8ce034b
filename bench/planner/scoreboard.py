"""Predictions beside published values, row by row and by group."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.planner.predictors import Case, Prediction, Unpredicted, cases, predict
from bench.planner.rows import Row


@dataclass(frozen=True)
class Score:
    """A published value and what is predicted of it.

    Attributes:
        metric: None for a row that publishes nothing that can be read.
        reason: why there is no prediction; empty where there is one.
    """

    name: str
    group: str
    metric: str | None
    published: float | None
    prediction: Prediction | None
    reason: str = ""

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
        return found | ({"note": made.note} if made.note else {})


def scores(rows: Sequence[Row]) -> list[Score]:
    """A score of every metric of every row; what could not be read or predicted has its reason."""
    found = []
    for row in rows:
        own = [_score(case) for case in cases(row, rows)]
        own += [Score(row.name, row.group, key, None, None, said) for key, said in row.odd.items()]
        found += own or [Score(row.name, row.group, None, None, None, "the row publishes no metric")]
    return found


def _score(case: Case) -> Score:
    row = case.row
    try:
        return Score(row.name, row.group, case.metric, case.published, predict(case))
    except Unpredicted as reason:
        return Score(row.name, row.group, case.metric, case.published, None, str(reason))


@dataclass(frozen=True)
class Group:
    """The errors of one metric in one group, in per cent; None where nothing is predicted.

    Attributes:
        rows, scored: published values, and those with a prediction.
        mean, median, worst: of the absolute errors.
        bias: the mean of the errors with their signs.
        inside: published values within the stated interval, of those scored.
        reasons: why the others aren't scored, and how many.
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
    )
