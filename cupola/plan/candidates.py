"""Which layouts a search looks at, and by which rules of thumb it leaves others out.

    data x tensor x pipeline x context = devices, expert among data x context     a shape
    + rows of a microbatch                                                         a group
    + schedule, chunks, shard, checkpointing                                       a layout

A setting that the caller states is taken as it is: no rule leaves it out. Every layout that a rule leaves out
is counted under it, with an example, so that `--explain` can say why.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cupola.plan.execution import Execution
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Checkpointing, Layout, Schedule
from cupola.plan.memory import Memory, needed
from cupola.plan.request import Request
from cupola.plan.steptime import StepTime, step_time

LEAST_PIECE = 4096
"""Tokens of a row that a context-parallel worker has at least: with fewer, its products are small, and
tensor or data parallelism does the same for less."""
MOST_TOKENS = 2**18
"""Of a microbatch on a device: with more, no product gets faster."""
MOST_GROUPS = 8
"""Context-parallel workers that a search tries: so many times the devices of a fast domain."""
SCHEDULES: tuple[tuple[Schedule, int], ...] = (
    ("1f1b", 1),
    ("zb-h1", 1),
    ("interleaved", 2),
    ("interleaved", 4),
    ("interleaved", 8),
)
"""With chunks. gpipe takes as long as 1f1b and more memory; zb-h2 and zb-v, which few programs have, are
tried where they are stated."""
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "operators", "full")
"""The least work first."""

Kind = Literal["impossible", "rule", "memory", "slower"]


@dataclass(frozen=True)
class Rejected:
    """Layouts that were left out for one reason.

    Attributes:
        layout: the one of them that came nearest.
        kind: impossible: a fault. rule: a rule of this module. memory: does not fit. slower.
        title: what they have in common.
        words: the reason, of this one.
        amount: how far off it is: bytes too much; seconds for each token.
        count: how many they are.
        part: memory's component.
        least: `amount` is the least that any of them could be.
    """

    layout: Layout
    kind: Kind
    title: str
    words: str = ""
    amount: float = 0.0
    count: int = 1
    part: str = ""
    least: bool = False


@dataclass(frozen=True)
class Question:
    """A request on devices.

    Attributes:
        margin: share of the memory to leave.
        given: settings of `Layout` that are stated.
    """

    request: Request
    execution: Execution
    hardware: Hardware
    devices: int
    margin: float = 0.05
    given: Mapping[str, Any] = field(default_factory=dict)

    def faults(self, layout: Layout) -> list[str]:
        """What is impossible about it."""
        return self.request.faults(layout, self.devices)

    def memory(self, layout: Layout) -> Memory:
        """Of its fullest rank."""
        return needed(self.request.run(layout, self.execution))

    def excess(self, memory: Memory) -> float:
        """Bytes beyond what may be taken; at most 0 where it fits."""
        return 0.0 if memory.fits(self.hardware.memory, self.margin) else memory.total - self.allowed

    @property
    def allowed(self) -> float:
        """Bytes that may be taken."""
        return self.hardware.memory * (1 - self.margin)

    def time(self, layout: Layout) -> StepTime:
        """Of its step."""
        return step_time(self.request.run(layout, self.execution), self.hardware)


@functools.lru_cache(maxsize=1024)
def divisors(number: int) -> tuple[int, ...]:
    """In order."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return tuple(small + [number // one for one in reversed(small) if one * one != number])


def shapes(question: Question, rejected: list[Rejected]) -> Iterator[Layout]:
    """Every product of workers that makes sense; those that don't go to `rejected`."""
    for tensor in _tensors(question, rejected):
        for pipeline in _pipelines(question, tensor, rejected):
            for context in _contexts(question, tensor * pipeline, rejected):
                data = question.devices // (tensor * pipeline * context)
                shape = Layout(data=data, tensor=tensor, pipeline=pipeline, context=context)
                if question.given.get("data", data) == data:
                    yield from _experts(question, shape)


def _tensors(question: Question, rejected: list[Rejected]) -> Iterator[int]:
    domain, devices = question.hardware.domain, question.devices
    if (stated := question.given.get("tensor")) is not None:
        yield from _dividing(question, "tensor", stated, devices, rejected)
        return
    for tensor in divisors(devices):
        layout = Layout(data=devices // tensor, tensor=tensor, shard=1)
        if tensor > domain:
            if tensor <= 4 * domain:
                title = f"tensor crosses the fast domain of {domain}"
                rejected.append(Rejected(layout, "rule", title, f"crosses the fast domain of {domain}"))
        elif found := _own(question, layout, "tensor "):
            rejected.append(Rejected(layout, "impossible", "tensor does not cut the model evenly", found))
        else:
            yield tensor


def _own(question: Question, layout: Layout, begins: str) -> str:
    """The fault of a layout that is about one setting."""
    found = [line for line in question.faults(layout) if line.startswith(begins)]
    return found[0] if found else ""


def _pipelines(question: Question, others: int, rejected: list[Rejected]) -> Iterator[int]:
    left, layers = question.devices // others, question.request.model.layers
    if (stated := question.given.get("pipeline")) is not None:
        yield from _dividing(question, "pipeline", stated, left, rejected)
        return
    for pipeline in divisors(left):
        if pipeline <= layers:
            yield pipeline
        elif pipeline <= 2 * layers:
            layout = Layout(data=left // pipeline, tensor=others, pipeline=pipeline)
            words = _own(question, layout, "pipeline ")
            rejected.append(Rejected(layout, "impossible", "more pipeline stages than layers", words))


def _contexts(question: Question, others: int, rejected: list[Rejected]) -> Iterator[int]:
    left, length = question.devices // others, question.request.sequence_length
    if (stated := question.given.get("context")) is not None:
        yield from _dividing(question, "context", stated, left, rejected)
        return
    for context in divisors(left):
        if context == 1:
            yield context
        elif length % context == 0 and context <= MOST_GROUPS * question.hardware.domain:
            if length // context >= LEAST_PIECE:
                yield context
            elif length // context >= LEAST_PIECE // 4:
                title = f"context leaves a worker less than {LEAST_PIECE:,} tokens of a row"
                words = f"rows of {length:,} tokens are short: {length // context:,} on a worker"
                layout = Layout(data=left // context, context=context, tensor=others)
                rejected.append(Rejected(layout, "rule", title, words))


def _dividing(
    question: Question, name: str, stated: int, left: int, rejected: list[Rejected]
) -> Iterator[int]:
    if left % stated == 0:
        yield stated
        return
    settings: dict[str, Any] = {"data": max(1, question.devices // stated), name: stated}
    layout = Layout(**settings)
    words = f"{name} {stated} does not divide the {left:,} devices that are left for it"
    rejected.append(Rejected(layout, "impossible", f"{name} does not divide the devices", words))


def _experts(question: Question, shape: Layout) -> Iterator[Layout]:
    """Experts lie whole on each worker, over what is left of a fast domain, or as far apart as they go."""
    model = question.request.model
    if (stated := question.given.get("expert")) is not None:
        yield replace(shape, expert=stated)
    elif model.experts is None:
        yield shape
    else:
        able = divisors(math.gcd(model.experts.count, shape.shards))
        near = max(one for one in able if one <= max(1, question.hardware.domain // shape.tensor))
        for expert in dict.fromkeys((1, near, able[-1])):
            yield replace(shape, expert=expert)


def groups(question: Question, shape: Layout, rejected: list[Rejected]) -> Iterator[Layout]:
    """A shape with each number of rows of a microbatch that divides the batch."""
    request, batch = question.request, question.request.batch
    length = request.sequence_length / shape.context
    if (stated := question.given.get("rows")) is not None:
        yield replace(shape, rows=stated)
        return
    if batch is None:
        yield from (replace(shape, rows=2**power) for power in range(12) if 2**power * length <= MOST_TOKENS)
        return
    if batch % shape.data:
        words = f"{shape.data:,} data-parallel workers can't share a batch of {batch:,} rows"
        title = f"a batch of {batch:,} rows can't be shared out"
        rejected.append(Rejected(shape, "impossible", title, words))
        return
    for rows in divisors(batch // shape.data):
        group = replace(shape, rows=rows)
        if rows == 1 or rows * length <= MOST_TOKENS:
            yield group
        else:
            words = f"{rows * length:,.0f} tokens of a microbatch: more than speed anything up"
            title = f"more than {MOST_TOKENS:,} tokens in a microbatch"
            rejected.append(Rejected(group, "rule", title, words))


def schedules(question: Question, group: Layout) -> list[Layout]:
    """A group with each schedule that it can have, the least memory first; one that is stated in any case."""
    if group.pipeline == 1:
        return [group]
    name: Schedule | None = question.given.get("schedule")
    chunks: int | None = question.given.get("chunks")
    menu = SCHEDULES
    if name is not None or chunks is not None:
        name = name or ("1f1b" if chunks == 1 else "interleaved")
        many = (2, 4, 8) if name == "interleaved" else (1,)
        menu = tuple((name, number) for number in ((chunks,) if chunks else many))
    found = [replace(group, schedule=schedule, chunks=number) for schedule, number in menu]
    layers = question.request.model.layers
    able = [one for one in found if one.stage_count <= layers and _rounds(question, one)]
    return able or found[:1]


def _rounds(question: Question, layout: Layout) -> bool:
    if layout.schedule != "interleaved" or question.request.batch is None:
        return True
    return layout.microbatches(question.request.batch) % layout.pipeline == 0


def shards(question: Question, group: Layout) -> tuple[int, ...]:
    """Stages of sharding that a group can have, the least first."""
    stated = question.given.get("shard")
    return (stated,) if stated is not None else (0, 1, 2, 3) if group.shards > 1 else (0,)


def modes(question: Question) -> tuple[Checkpointing, ...]:
    """Of checkpointing, the least work first."""
    stated = question.given.get("checkpointing")
    return CHECKPOINTING if stated is None else (stated,)
