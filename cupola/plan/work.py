"""The work of a stage: the seconds of its steps and of all else that it computes.

Of its `course`: the seconds of its steps at every batch and row length (`steptime`), of evaluations and
passes beside training's (a third of a step's time for each token: no backward pass), and of sampling
where it learns from its own answers, by a rule of thumb. Doubts about speed are common to all steps, so
they add up as they are, not as independent errors would.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cupola.models import table
from cupola.plan import flops
from cupola.plan.course import Course
from cupola.plan.execution import Execution
from cupola.plan.figure import Figure
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout
from cupola.plan.request import Request
from cupola.plan.steptime import StepTime, step_time
from cupola.recipe.clock import Stretch
from cupola.recipe.strict import round_up

FORWARD = 1 / 3
"""Time of a forward pass over that of a step: a backward pass is two products for each of its one."""
SAMPLED = Figure(1.0, 0.5, 3.0)
"""How far the rule of thumb for sampling may be off. An assumption."""
DECODING = 0.5
"""Share of the memory's bandwidth, or of the peak, that decoding reaches. An assumption."""
TIMED = 16
"""Batches and row lengths whose step is computed; a stage may climb by a thousand stairs."""


@dataclass(frozen=True)
class Asked:
    """A stage, and how it is to be run: what `stage_run` needs."""

    request: Request
    layout: Layout
    execution: Execution
    course: Course


@dataclass(frozen=True)
class StageRun:
    """A stage's work.

    Attributes:
        step: of its longest rows and largest batch.
        seconds: by what they go to; steps, evaluation, passes beside training's, sampling.
        flops: of training by convention; operations, not of evaluation and sampling.
        mfu: `exact_full` over what the devices could do in the seconds of its steps.
    """

    course: Course
    step: StepTime
    seconds: Mapping[str, Figure]
    flops: Mapping[flops.Name, float]
    mfu: float

    @property
    def work(self) -> Figure:
        """Seconds of all of it."""
        return together(self.seconds.values())


def together(figures: Iterable[Figure]) -> Figure:
    """The sum of figures whose errors are the same one."""
    found = list(figures)
    return Figure(
        math.fsum(one.value for one in found),
        math.fsum(one.low for one in found),
        math.fsum(one.high for one in found),
    )


def stage_run(asked: Asked, hardware: Hardware) -> StageRun:
    """A stage's work on its layout."""
    course, request, layout = asked.course, asked.request, asked.layout
    of_token = {
        length: flops.by_convention(request.model, request.vocabulary, length)
        for length in {one.sequence_length for one in course.stretches}
    }
    times = _times(asked, hardware, {length: found["exact_full"] for length, found in of_token.items()})
    steps = together([times[_key(one)].seconds.times(one.steps) for one in course.stretches])
    largest = times[_key(course.largest)]
    token = largest.seconds.times(FORWARD / largest.tokens)
    seconds = {
        "steps": steps,
        "evaluation": token.times(course.evaluations * course.evaluation_tokens),
        "other passes": token.times(course.forwards * course.tokens),
        "sampling": _sampling(asked, hardware),
    }
    counted = {
        name: math.fsum(
            of_token[one.sequence_length][name] * (one.end - one.start) for one in course.stretches
        )
        for name in flops.CONVENTIONS
    }
    could = steps.value * hardware.flops(asked.execution.precision) * layout.devices
    return StageRun(course, largest, seconds, counted, counted["exact_full"] / could)


def _key(stretch: Stretch) -> tuple[int, int]:
    return stretch.batch_tokens, stretch.sequence_length


def _times(
    asked: Asked, hardware: Hardware, of_token: Mapping[int, float]
) -> dict[tuple[int, int], StepTime]:
    """Of a step at every batch and row length. Where there are more than `TIMED`, as on the stairs of a ramp,
    those between take for each operation the time that the one before them does.

    Args:
        of_token: FLOPs by row length, `exact_full`.
    """
    largest = asked.course.largest
    stretches = list({_key(one): one for one in asked.course.stretches}.values())
    every = -(-len(stretches) // TIMED)
    found: dict[tuple[int, int], StepTime] = {}
    last = None
    for number, stretch in enumerate(stretches):
        if last is None or number % every == 0 or _key(stretch) == _key(largest):
            last = _step(asked, stretch, largest.sequence_length, hardware)
            found[_key(stretch)] = last
            continue
        operations = of_token[stretch.sequence_length] * stretch.batch_tokens
        ratio = operations / last.flops
        found[_key(stretch)] = replace(
            last,
            seconds=last.seconds.times(ratio),
            parts={name: seconds * ratio for name, seconds in last.parts.items()},
            flops=operations,
            tokens=stretch.batch_tokens,
        )
    return found


def _step(asked: Asked, stretch: Stretch, longest: int, hardware: Hardware) -> StepTime:
    """Of one step of a stretch. A microbatch keeps its tokens where rows are shorter; what workers get of a
    batch is whole microbatches, the same number for each."""
    layout, length = asked.layout, stretch.sequence_length
    wanted = -(-stretch.batch_tokens // length)
    rows = max(1, min(layout.rows * longest // length, -(-wanted // layout.data)))
    unit = layout.data * rows * (layout.pipeline if layout.schedule == "interleaved" else 1)
    batch = round_up(wanted, unit)
    request = replace(asked.request, sequence_length=length, batch=batch)
    return step_time(request.run(replace(layout, rows=rows), asked.execution), hardware)


def _sampling(asked: Asked, hardware: Hardware) -> Figure:
    """Seconds of writing a stage's answers, a rule of thumb: all workers answer at once, and each token takes
    the time of reading the weights or of multiplying by them, whichever is longer. Reading the questions, and
    what keys and values take, are left out."""
    answers, layout, execution = asked.course.answers, asked.layout, asked.execution
    if answers is None:
        return Figure.of(0.0)
    model, rows = asked.request.model, asked.request.vocabulary
    ways = layout.tensor * layout.pipeline
    at_once = -(-answers.at_once * ways // layout.devices)
    read = execution.element * table.count(model, rows) / ways / hardware.bandwidth
    multiplied = 2.0 * table.active_count(model, rows) * at_once / ways / hardware.flops(execution.precision)
    token = max(read, multiplied) / DECODING
    return SAMPLED.times(answers.rounds * answers.length * token)
