"""What would make it fit, where it doesn't: single changes first, then several, then more devices.

The order is that of what a change costs: fewer rows and sharding little, checkpointing up to a third of the
time, tensor and context parallelism communication, a pipeline its bubble.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cupola.plan.execution import Execution
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout
from cupola.plan.memory import needed
from cupola.plan.request import Request

MOST = 3
MOST_DOUBLINGS = 12


@dataclass(frozen=True)
class Cure:
    """A change that makes it fit.

    Attributes:
        words: the options to state.
        total: bytes on the fullest device then.
    """

    words: str
    layout: Layout
    devices: int
    total: float


def cures(
    request: Request, layout: Layout, execution: Execution, hardware: Hardware, devices: int, margin: float
) -> list[Cure]:
    """At most `MOST` ways, best first; none if even many more devices don't help."""

    def fitting(changed: Layout, count: int) -> Cure | None:
        if request.faults(changed, count):
            return None
        memory = needed(request.run(changed, execution))
        if not memory.fits(hardware.memory, margin):
            return None
        return Cure(_words(layout, changed, hardware, devices, count), changed, count, memory.total)

    found: dict[str, Cure] = {}
    for changed in _single(layout, hardware):
        if (cure := fitting(changed, devices)) is not None:
            found.setdefault(cure.words, cure)
    if not found:
        found |= _together(layout, hardware, devices, fitting)
    return list(found.values())[:MOST]


def _single(layout: Layout, hardware: Hardware) -> Iterator[Layout]:
    for rows in _halves(layout.rows):
        yield replace(layout, rows=rows)
    if layout.shard < 3 and layout.shards > 1:
        yield replace(layout, shard=3)
    if layout.checkpointing != "full":
        yield replace(layout, checkpointing="full")
    for name in ("tensor", "context", "pipeline"):
        yield from _wider(layout, name, hardware)


def _halves(rows: int) -> Iterator[int]:
    while rows > 1:
        rows //= 2
        yield rows


def _wider(layout: Layout, name: str, hardware: Hardware) -> Iterator[Layout]:
    """With more of one kind of worker, taken from the data-parallel ones; tensor within fast links."""
    ways = 2
    while ways <= layout.data and (name != "tensor" or layout.tensor * ways <= hardware.domain):
        if layout.data % ways == 0:
            yield replace(layout, **{name: getattr(layout, name) * ways, "data": layout.data // ways})
        ways *= 2


def _together(
    layout: Layout, hardware: Hardware, devices: int, fitting: Callable[[Layout, int], Cure | None]
) -> dict[str, Cure]:
    """Everything cheap at once, with whatever else it takes."""
    found: dict[str, Cure] = {}
    for doubling in range(MOST_DOUBLINGS + 1):
        factor = 2**doubling
        base = replace(layout, rows=1, shard=3, data=layout.data * factor)
        for checkpointing in dict.fromkeys((layout.checkpointing, "full")):
            plain = replace(base, checkpointing=checkpointing)
            wider = [
                one for name in ("tensor", "context", "pipeline") for one in _wider(plain, name, hardware)
            ]
            twice = [
                two for one in wider if one.tensor > plain.tensor for two in _wider(one, "pipeline", hardware)
            ]
            for changed in (plain, *wider, *twice):
                if (cure := fitting(changed, devices * factor)) is not None:
                    found.setdefault(cure.words, cure)
                    if len(found) == MOST:
                        return found
        if found:
            return found
    return found


def _words(before: Layout, after: Layout, hardware: Hardware, devices: int, count: int) -> str:
    found = [f"--on {hardware.name}:{count}"] if count != devices else []
    for name in ("data", "tensor", "pipeline", "context", "shard", "rows", "checkpointing"):
        value = getattr(after, name)
        if value != getattr(before, name) and name != "data":
            found.append(f"--{name} {value}")
    return " ".join(found)
