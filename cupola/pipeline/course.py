"""The course of a stage before it is run: its steps by their size, and how often it does something else."""

from collections.abc import Mapping
from dataclasses import dataclass

from cupola.recipe.clock import Clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Recipe, Stage
from cupola.train.health import interval

Size = tuple[int, int]
"""Row length, and tokens on the stage's clock, of a step."""


@dataclass(frozen=True)
class Course:
    """What a stage does.

    Attributes:
        steps: size of a step -> how many there are, in the order in which they begin.
        first: size of a step -> (start, end) of the first one.
        evaluations: in the course of training; the one at its end is not counted.
        saves: of checkpoints, the one at the end included.
        looks: at numerical health.
    """

    steps: Mapping[Size, int]
    first: Mapping[Size, tuple[int, int]]
    evaluations: int
    saves: int
    looks: int


def course_of(recipe: Recipe, stage: Stage, clock: Clock) -> Course:
    """As the loop (`train.loop`) goes through the stage; takes microseconds a step."""
    steps: dict[Size, int] = {}
    first: dict[Size, tuple[int, int]] = {}
    evaluations = saves = looks = since = 0
    look_every: Quantity | None = interval(recipe.health, clock)
    together = stage.policy.updates if stage.samples else 1
    for number, (start, end) in enumerate(clock.steps(), start=1):
        size = (clock.sequence_length(start), end - start)
        steps[size] = steps.get(size, 0) + 1
        first.setdefault(size, (start, end))
        looks += look_every is not None and clock.due(look_every, start, end)
        at_end = end >= clock.end
        if at_end or number % together == 0:  # elsewhere the stage can't be left
            evaluations += not at_end and clock.due(recipe.evaluate.every, since, end)
            saves += at_end or clock.due(recipe.checkpoint.every, since, end)
            since = end
    return Course(steps, first, evaluations, saves, looks)
