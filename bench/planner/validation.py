"""Step times of rows by constants that were chosen without them.

The constants of `plan.causes` (those in `FITTED`) and what products reach of each device's peak were chosen
with a look at these rows. So that this can't flatter them, each system's rows are predicted once more with
constants that a plain coordinate search finds on the other systems' rows, beginning from values that are of
data sheets and first guesses (`PRIOR`). A device that only the left-out rows ran on is scaled as its kin are.
What a program does (`programs`) is not fitted: it is stated.

The baseline is what one reckons with on paper: a constant share of the peak, the median over the others.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.planner.predictors import Case, Unpredicted, cases
from bench.planner.programs import Timed
from bench.planner.rows import Row
from bench.planner.timing import LONGER, TIME, step_of
from cupola.plan.causes import CAUSES, FITTED, Causes
from cupola.plan.hardware import Hardware, catalogue
from cupola.plan.steptime import step_time

METRICS = (
    "step_time_s",
    "step_time_s_derived",
    "tokens_per_s_per_device",
    "tokens_per_s_total",
    "tflops_per_device",
    "tflops_per_device_hw",
    "mfu_pct",
)
"""What says how long a step took; the first that a row has."""
PRIOR = {
    "v100-32": 0.80,
    "a100-40": 0.85,
    "a100": 0.87,
    "h100": 0.71,
    "h100-pcie": 0.60,
    "h100-96": 0.66,
    "h200": 0.74,
    "h800": 0.71,
    "b200": 0.72,
    "gb200": 0.75,
    "b300": 0.75,
    "gb300": 0.80,
}
"""What products were taken to reach of the 16-bit peak before any row was looked at."""
KIN = (
    ("a100-40", "a100"),
    ("h100", "h100-96", "h200", "h800", "h100-pcie"),
    ("b200", "gb200", "b300", "gb300"),
)
SYSTEMS = (
    ("megatron2021", "Megatron-LM 2021"),
    ("mcore", "Megatron-Core"),
    ("torchtitan", "torchtitan"),
    ("foundry", "llm-foundry"),
)
"""Groups that are one system; any other group is one of its own, as Megatron-Bridge's are by model."""
STEPS = (1.2, 1.08, 1.03)
"""By what a constant is changed, sweep by sweep."""
RANGES = (1.5, 1.3)
"""How far from what is stated a fit may move causes, and devices' factors."""
MOST = 7
"""Rows of a group that constants are fitted on: more are more of the same."""
CAP = 0.4
"""An error (of logarithms) counts no more than this in a fit: some rows are of another cause."""


@dataclass(frozen=True)
class Sample:
    """A row whose step time is known.

    Attributes:
        seconds: as published.
        share: of the peak, by model FLOPs without recomputation, unmasked attention.
    """

    row: Row
    timed: Timed
    seconds: float
    share: float

    @property
    def system(self) -> str:
        """Which it belongs to."""
        group = self.row.group
        return next((name for start, name in SYSTEMS if group.startswith(start)), group)


@dataclass(frozen=True)
class Constants:
    """What is fitted: causes, and by device a factor on what products reach."""

    causes: Causes = CAUSES
    scales: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """A row predicted without its system.

    Attributes:
        shipped: predicted over published seconds, by the constants as they are.
        ratio: published over predicted, by those of the other systems.
        constant: predicted over published, by a constant share of the peak.
    """

    row: Row
    shipped: float
    ratio: float
    constant: float
    mixture: bool

    def as_json(self) -> dict[str, Any]:
        """With the row's name and group."""
        found = {"name": self.row.name, "group": self.row.group, "mixture": self.mixture}
        return found | {
            "shipped": self.shipped,
            "cross_validated": 1 / self.ratio,
            "constant": self.constant,
        }


def samples(rows: Sequence[Row]) -> list[Sample]:
    """Of all rows that say how long a step took and can be expressed."""
    found = []
    for row in rows:
        metric = next((name for name in METRICS if name in row.metrics), None)
        own = [case for case in cases(row, rows) if case.metric == metric]
        if own and (one := _sample(own[0])) is not None:
            found.append(one)
    return found


def _sample(case: Case) -> Sample | None:
    try:
        predicted = TIME[case.metric](case).value
        timed, step = step_of(case)
    except Unpredicted:
        return None
    over = predicted / case.published
    seconds = step.seconds.value * (1 / over if case.metric in LONGER else over)
    return Sample(case.row, timed, seconds, step.mfu * step.seconds.value / seconds)


def cross_validated(found: Sequence[Sample]) -> list[Held]:
    """Every sample by the constants of the other systems."""
    held = []
    for system in dict.fromkeys(one.system for one in found):
        others = [one for one in found if one.system != system]
        own = [one for one in found if one.system == system]
        if not others:
            continue
        constants = fit(_thinned(others), {one.timed.hardware.name for one in own})
        share = statistics.median(one.share for one in others)
        held += [
            Held(
                one.row,
                seconds_of(one, Constants()) / one.seconds,
                one.seconds / seconds_of(one, constants),
                one.share / share,
                one.timed.run.model.experts is not None,
            )
            for one in own
        ]
    return held


def constant_shares(rows: Sequence[Row]) -> list[tuple[Sample, float]]:
    """Seconds at a constant share of the peak over published ones: the median of the other systems."""
    found = samples(rows)
    medians = {}
    for system in {one.system for one in found}:
        others = [one.share for one in found if one.system != system]
        medians[system] = statistics.median(others) if others else math.nan
    return [(one, one.share / medians[one.system]) for one in found if medians[one.system] > 0]


def _thinned(found: Sequence[Sample]) -> list[Sample]:
    groups: dict[str, list[Sample]] = {}
    for one in found:
        groups.setdefault(one.row.group, []).append(one)
    return [one for own in groups.values() for one in own[:: -(-len(own) // MOST)]]


def fit(found: Sequence[Sample], wanted: Iterable[str] = ()) -> Constants:
    """Constants by coordinate search: each in turn is made larger and smaller, and what is better is kept.

    Args:
        wanted: devices that are needed though no row ran on them.
    """
    devices = sorted({one.timed.hardware.name for one in found})
    weights = _weights(found)
    constants = Constants(scales={name: _prior(name, found) for name in devices})
    losses = [_loss(one, weights, constants) for one in found]
    for step in STEPS:
        for name in (*FITTED, *devices):
            for factor in (step, 1 / step):
                while True:
                    tried = _changed(constants, name, factor)
                    # A device's factor changes its own rows alone.
                    made = [
                        _loss(one, weights, tried)
                        if name in FITTED or one.timed.hardware.name == name
                        else loss
                        for one, loss in zip(found, losses, strict=True)
                    ]
                    if sum(made) >= sum(losses) - 1e-6:
                        break
                    constants, losses = tried, made
    return replace(constants, scales=_for_kin(constants.scales, wanted, found))


def _prior(name: str, found: Sequence[Sample]) -> float:
    """The first guess over what the record says now."""
    record = next(one.timed.hardware for one in found if one.timed.hardware.name == name)
    return PRIOR.get(name, record.attained("bf16")) / record.attained("bf16")


def _for_kin(scales: dict[str, float], wanted: Iterable[str], found: Sequence[Sample]) -> dict[str, float]:
    """Devices without a row have the first guess, moved as that of their kin was."""
    records = catalogue()
    made = dict(scales)
    for name in wanted:
        if name in made:
            continue
        kin = next((family for family in KIN if name in family), ())
        now = records[name].attained("bf16")
        moves = [
            scales[other] * records[other].attained("bf16") / PRIOR[other] for other in kin if other in scales
        ]
        made[name] = PRIOR.get(name, now) / now * (statistics.fmean(moves) if moves else 1.0)
    return made


def _weights(found: Sequence[Sample]) -> dict[str, float]:
    """Each group counts the same."""
    sizes: dict[str, int] = {}
    for one in found:
        sizes[one.row.group] = sizes.get(one.row.group, 0) + 1
    return {group: 1 / size / len(sizes) for group, size in sizes.items()}


def _loss(one: Sample, weights: dict[str, float], constants: Constants) -> float:
    error = abs(math.log(seconds_of(one, constants) / one.seconds))
    return weights[one.row.group] * min(CAP, error)


def _changed(constants: Constants, name: str, factor: float) -> Constants:
    """A constant moved, within what it can be: constants that hide each other's errors drift off else."""
    if name in constants.scales:
        value = _within(constants.scales[name] * factor, 1.0, RANGES[1])
        return replace(constants, scales=constants.scales | {name: value})
    stated = getattr(CAUSES, name)
    value = _within(getattr(constants.causes, name) * factor, stated, RANGES[0])
    return replace(constants, causes=replace(constants.causes, **{name: value}))


def _within(value: float, middle: float, reach: float) -> float:
    return min(max(value, middle / reach), middle * reach)


def seconds_of(sample: Sample, constants: Constants) -> float:
    """Of a row's step by these constants."""
    timed = sample.timed
    hardware = _scaled(timed.hardware, constants.scales.get(timed.hardware.name, 1.0))
    return step_time(timed.run, hardware, timed.program, constants.causes).seconds.value


def _scaled(hardware: Hardware, factor: float) -> Hardware:
    if factor == 1.0:
        return hardware
    reached = {name: min(1.0, share * factor) for name, share in hardware.attainable.items()}
    return hardware.model_copy(update={"attainable": reached})


def quantile(values: Sequence[float], share: float) -> float:
    """Of a list, between its members."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
