"""Which metric is predicted by what."""

from collections.abc import Callable

from bench.planner.memory import MEMORY
from bench.planner.predictors import PREDICTORS, Case, Prediction, Unpredicted
from bench.planner.timing import TIME

ALL: dict[str, Callable[[Case], Prediction]] = {**PREDICTORS, **MEMORY, **TIME}
"""By metric: counts, memory, time."""


def predict(case: Case) -> Prediction:
    """The prediction of a metric.

    Raises:
        Unpredicted: with the reason.
    """
    if (predictor := ALL.get(case.metric)) is None:
        raise Unpredicted("not predicted yet")
    return predictor(case)
