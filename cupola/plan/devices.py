"""The same run on other numbers of devices: what more of them save in time and add in cost.

The layout stays but for its data-parallel workers, whose number must divide the batch; so training is the
same, step by step. Fewer devices than fit the model are there too, and say that they don't.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cupola.errors import InputError
from cupola.plan.campaign import Campaign
from cupola.plan.layout import Layout
from cupola.plan.memory import needed
from cupola.plan.work import Asked

REACH = 5
"""How often the number of devices is doubled or halved, at most."""


@dataclass(frozen=True)
class Point:
    """A number of devices.

    Attributes:
        data: data-parallel workers; of the first stage, where stages differ.
        run: as it would go there.
        fits: whether every stage does.
    """

    devices: int
    data: int
    run: Campaign
    fits: bool


def over_devices(
    stages: Sequence[Asked], asked: Campaign, again: Callable[[Sequence[Asked]], Campaign], room: float
) -> list[Point]:
    """The run as asked for among others, the fewest devices first.

    Args:
        stages: as they are asked for.
        asked: what came of that.
        again: what comes of the stages on other layouts.
        room: bytes that a stage may take of a device.
    """
    points = []
    for factor in factors(stages):
        moved = [replace(one, layout=widened(one.layout, factor)) for one in stages]
        try:
            run = asked if factor == 1 else again(moved)
        except InputError:  # so many devices that the run would not get on
            continue
        fits = all(needed(one.request.run(one.layout, one.execution)).total <= room for one in moved)
        points.append(Point(moved[0].layout.devices, moved[0].layout.data, run, fits))
    return points


def factors(stages: Sequence[Asked]) -> list[float]:
    """By what data-parallel workers can be multiplied: 1, and near each power of 2 what is possible and
    nearest to it."""
    data = stages[0].layout.data
    batches = [one.request.batch // one.layout.rows for one in stages if one.request.batch is not None]
    common = math.gcd(*batches) if batches else data * 2**REACH
    ways = [one for one in _divisors(common) if data / 2**REACH <= one <= data * 2**REACH]
    possible = [one / data for one in ways if _possible(stages, one / data)]
    found = {1.0}
    for power in range(-REACH, REACH + 1):
        near = min(possible, key=lambda one: abs(math.log2(one) - power), default=1.0)
        if abs(math.log2(near) - power) < 0.5:
            found.add(near)
    return sorted(found)


def widened(layout: Layout, factor: float) -> Layout:
    """With so many times the data-parallel workers."""
    return replace(layout, data=round(layout.data * factor))


def _possible(stages: Sequence[Asked], factor: float) -> bool:
    for one in stages:
        layout = widened(one.layout, factor)
        if layout.data != one.layout.data * factor or one.request.faults(layout, layout.devices):
            return False
    return True


def _divisors(number: int) -> list[int]:
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})
