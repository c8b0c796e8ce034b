"""What would make it fit, where it doesn't: what a search finds, the fastest first.

Single changes are tried on the layout itself; others are the best layouts of other shapes. Where nothing fits
on these devices, more of them are tried.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cupola.plan.candidates import Question, divisors
from cupola.plan.execution import Execution
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout
from cupola.plan.request import Request
from cupola.plan.search import Candidate, search

MOST = 3
MOST_DOUBLINGS = 12


@dataclass(frozen=True)
class Cure:
    """A change that makes it fit.

    Attributes:
        words: the options to state.
        total: bytes on the fullest device then.
        per_token: seconds that a token then takes.
    """

    words: str
    layout: Layout
    devices: int
    total: float
    per_token: float


def cures(
    request: Request, layout: Layout, execution: Execution, hardware: Hardware, devices: int, margin: float
) -> list[Cure]:
    """At most `MOST` ways, the fastest first; none if even many more devices don't help.

    One of them changes a single setting, if that can do.
    """
    given = {} if layout.pipeline == 1 else {"schedule": layout.schedule, "chunks": layout.chunks}
    question = Question(request, execution, hardware, devices, margin, given)
    for doubling in range(MOST_DOUBLINGS + 1):
        wider = replace(question, devices=devices << doubling)
        found = list(search(wider, MOST).best)
        found += _single(wider, replace(layout, data=layout.data << doubling))
        told = {one.layout: _cure(one, layout, hardware, devices) for one in found}
        if told:
            return _chosen(list(told.values()), layout)
    return []


def _chosen(found: list[Cure], before: Layout) -> list[Cure]:
    """The fastest, the nearest single change among them."""
    found.sort(key=lambda cure: (cure.per_token, len(cure.words)))
    best = found[:MOST]
    single = [cure for cure in found if _changes(before, cure.layout) == 1]
    if single and single[0] not in best:
        best[-1] = single[0]
    return best


def _cure(found: Candidate, before: Layout, hardware: Hardware, devices: int) -> Cure:
    words = _words(before, found.layout, hardware, devices)
    return Cure(words, found.layout, found.layout.devices, found.memory.total, found.per_token)


def _single(question: Question, layout: Layout) -> Iterator[Candidate]:
    """The layout with one setting changed, where that is enough."""
    for changed in _changed(layout, question.hardware):
        if question.faults(changed):
            continue
        memory = question.memory(changed)
        if memory.fits(question.hardware.memory, question.margin):
            yield Candidate(changed, memory, question.time(changed))


def _changed(layout: Layout, hardware: Hardware) -> Iterator[Layout]:
    yield layout
    for rows in divisors(layout.rows)[:-1]:
        yield replace(layout, rows=rows)
    if layout.shards > 1:
        for shard in range(layout.shard + 1, 4):
            yield replace(layout, shard=shard)
    if layout.checkpointing != "full":
        yield replace(layout, checkpointing="full")
    for name in ("tensor", "context", "pipeline"):
        for ways in divisors(layout.data)[1:]:
            wider = getattr(layout, name) * ways
            if name != "tensor" or wider <= hardware.domain:
                yield replace(layout, **{name: wider, "data": layout.data // ways})


SAID = ("tensor", "pipeline", "context", "expert", "shard", "rows", "schedule", "chunks", "checkpointing")


def _changes(before: Layout, after: Layout) -> int:
    return sum(getattr(before, name) != getattr(after, name) for name in SAID)


def _words(before: Layout, after: Layout, hardware: Hardware, devices: int) -> str:
    found = [f"--on {hardware.name}:{after.devices}"] if after.devices != devices else []
    for name in SAID:
        value = getattr(after, name)
        if value != getattr(before, name):
            found.append(f"--{name} {value}")
    return " ".join(found)
