"""Which metric is predicted by what."""

import re
from collections.abc import Callable

from bench.planner.costs import COSTS, FORMS
from bench.planner.memory import MEMORY
from bench.planner.predictors import PREDICTORS, Case, Prediction, Unpredicted
from bench.planner.timing import TIME, days

ALL: dict[str, Callable[[Case], Prediction]] = {**PREDICTORS, **MEMORY, **TIME, **COSTS}
"""By metric: counts, memory, time, what it takes."""
ALL_FORMS = (*FORMS, (r"days(_ideal)?_on_\d+.*|days_for_\d+B_tokens", days))
"""Of metrics that have a number in their name which no row here has."""


def predict(case: Case) -> Prediction:
    """The prediction of a metric.

    Raises:
        Unpredicted: with the reason.
    """
    predictor = ALL.get(case.metric) or next(
        (found for form, found in ALL_FORMS if re.fullmatch(form, case.metric)), None
    )
    if predictor is None:
        raise Unpredicted("not predicted yet")
    return predictor(case)
