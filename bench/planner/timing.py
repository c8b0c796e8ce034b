"""Time of published rows: one prediction of a step, turned into whatever figure a row prints.

tokens a second   tokens of the step / its seconds / devices
TFLOP/s           FLOPs of the row's own convention / seconds / devices
utilisation       those over the peak of the row's hardware
days, GPU-hours   tokens of the whole run at that speed: without failures, evaluations, restarts
"""

import re
from collections.abc import Callable

from bench.planner.predictors import Case, Prediction, convention_of, counted
from bench.planner.programs import Timed, timed
from bench.planner.rows import Row
from cupola.plan.causes import CAUSES, Causes
from cupola.plan.figure import Figure
from cupola.plan.flops import Name, work
from cupola.plan.steptime import StepTime, step_time

DAY, HOUR = 86400.0, 3600.0
PROGRAMME = Figure(1.1, 1.0, 1.9)
"""Published GPU-hours over those of an undisturbed run: with failures, restarts, evaluations, and with what
else their authors count. BLOOM's are 1.1 by its own step time, Llama 3's up to 2 by any that others reach."""
_steps: dict[tuple[int, Causes], tuple[Row, Timed, StepTime]] = {}


def step_of(case: Case, causes: Causes = CAUSES) -> tuple[Timed, StepTime]:
    """What a row runs, and its step; rows are asked for several figures of one step.

    Raises:
        Unpredicted: with the reason.
    """
    key = id(case.row), causes
    if key not in _steps or _steps[key][0] is not case.row:
        found = timed(case)
        _steps[key] = case.row, found, step_time(found.run, found.hardware, found.program, causes)
    return _steps[key][1:]


def _prediction(case: Case, figure: Figure, timed: Timed, convention: str | None = None) -> Prediction:
    # What printing cut off is not the prediction's fault.
    low, high = figure.low * (1 - case.slack), figure.high * (1 + case.slack)
    return Prediction(figure.value, low, high, convention, "; ".join(timed.notes))


def seconds(case: Case) -> Prediction:
    """Of a step."""
    found, step = step_of(case)
    return _prediction(case, step.seconds, found)


def tokens_per_device(case: Case) -> Prediction:
    """A second."""
    found, step = step_of(case)
    return _prediction(case, _speed(found, step, found.run.layout.devices), found)


def tokens_in_all(case: Case) -> Prediction:
    """A second, of all devices."""
    found, step = step_of(case)
    return _prediction(case, _speed(found, step, 1), found)


def _speed(found: Timed, step: StepTime, devices: float) -> Figure:
    return Figure.of(step.tokens / devices).over(step.seconds)


def _rate(case: Case, hardware: bool) -> tuple[Figure, Timed, Name]:
    """FLOP/s of a device by the row's convention."""
    name = convention_of(case.row, hardware)
    count, _ = counted(case, name)
    found, step = step_of(case)
    return _speed(found, step, found.run.layout.devices).times(count), found, name


def tflops(case: Case) -> Prediction:
    """Of a device; `_hw` counts what is recomputed."""
    rate, found, name = _rate(case, case.metric.endswith("_hw"))
    return _prediction(case, rate.times(1e-12), found, name)


def petaflops(case: Case) -> Prediction:
    """Of all devices; the tables of Megatron print hardware's where these are what they print of one."""
    rate, found, name = _rate(case, "tflops_per_device_hw" in case.row.metrics)
    return _prediction(case, rate.times(1e-15 * found.run.layout.devices), found, name)


def _share(found: Timed, rate: Figure) -> Figure:
    return rate.over(found.hardware.flops(found.run.execution.precision)).times(100)


def utilisation(case: Case) -> Prediction:
    """In per cent of the peak."""
    hardware = case.metric == "pct_peak" and "tflops_per_device_hw" in case.row.metrics
    rate, found, name = _rate(case, hardware)
    return _prediction(case, _share(found, rate), found, name)


def utilisation_without_attention(case: Case) -> Prediction:
    """Of 6 N alone."""
    count, _ = counted(case, "6nd")
    found, step = step_of(case)
    rate = _speed(found, step, found.run.layout.devices).times(count)
    return _prediction(case, _share(found, rate), found, "6nd")


def hardware_utilisation(case: Case) -> Prediction:
    """With what is recomputed: a third more where that is everything, attention's two products where it is
    these."""
    rate, found, name = _rate(case, False)
    run, more = found.run, 1.0
    if run.layout.checkpointing == "full":
        more = 4 / 3
    elif run.layout.checkpointing == "selective":
        whole = work(run.model, run.vocabulary, run.sequence_length, causal=False, windows=False)
        more = 1 + whole.mixing / counted(case, name)[0]
    return _prediction(case, _share(found, rate.times(more)), found, name)


def days(case: Case) -> Prediction:
    """Of the run on its tokens; the metric's name may state other tokens, and on how many devices."""
    found, step = step_of(case)
    on = re.search(r"_on_(\d+)", case.metric)
    speed = _speed(found, step, found.run.layout.devices / int(on[1]) if on else 1)
    return _prediction(case, Figure.of(_tokens(case) / DAY).over(speed), found)


def _tokens(case: Case) -> float:
    if case.metric.endswith("per_T_tokens"):
        return 1e12
    stated = re.search(r"for_(\d+)B_tokens", case.metric)
    return float(stated[1]) * 1e9 if stated else float(case.size("tokens"))


def device_hours(case: Case) -> Prediction:
    """Of the run on its tokens."""
    found, step = step_of(case)
    hours = Figure.of(_tokens(case) / HOUR).over(_speed(found, step, found.run.layout.devices))
    return _prediction(case, hours.times(PROGRAMME), found)


TIME: dict[str, Callable[[Case], Prediction]] = {
    "step_time_s": seconds,
    "step_time_s_derived": seconds,
    "tokens_per_s_per_device": tokens_per_device,
    "tokens_per_s_total": tokens_in_all,
    "tflops_per_device": tflops,
    "tflops_per_device_hw": tflops,
    "aggregate_pflops": petaflops,
    "mfu_pct": utilisation,
    "hfu_pct": hardware_utilisation,
    "mfu_no_attn_pct": utilisation_without_attention,
    "pct_peak": utilisation,
    "days_for_300B_tokens": days,
    "days": days,
    "days_on_2048": days,
    "days_on_10000_V100": days,
    "days_ideal_on_1024": days,
    "days_per_T_tokens": days,
    "gpu_hours": device_hours,
    "chip_hours": device_hours,
    "gpu_hours_per_T_tokens": device_hours,
}
"""By metric; `predictors.PREDICTORS` has the others."""
LONGER = ("step_time_s", "step_time_s_derived", *(name for name in TIME if re.search("days|hours", name)))
"""Those that grow with the time of a step; the others fall."""
