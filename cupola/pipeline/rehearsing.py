"""A stage in small, on a model of its own: steps of each size that will run, timed, and what they come to
over the whole stage.

What is timed is what runs: `forward_backward` and `step.update` on the stage's own batches (cut to two
microbatches, since the others are like the second), cold once and warm several times, of which the median
counts, all at one pace (`train.pace`). A size that is not tried, because a stage has too many, gets the rate
of FLOPs of the one most like it. The learning rate is 0, so that the first loss stays what it is.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from cupola import objectives, optim
from cupola.data.batch import LEARNT, MISMATCHED, REJECTED, Batch, Microbatch
from cupola.data.loader import Reader
from cupola.data.order import Order
from cupola.models import build, lora
from cupola.models.table import trained
from cupola.parallel.device import synchronize
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.course import Course, Size
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.prepare import Prepared
from cupola.plan.own import Phase
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Recipe, Stage
from cupola.train.look import Look
from cupola.train.memory import held_now
from cupola.train.pace import Pace
from cupola.train.step import StepResult, update

Shape = tuple[int, int]
"""Rows and row length of a microbatch."""

MOST_SHAPES = 6
"""Shapes of a stage's microbatches that are tried, those first that most tokens come in."""
FEWEST_ROUNDS, MOST_ROUNDS = 2, 8
SECONDS = 2.0
"""Of warm rounds of a shape, after which no further one begins."""
WARM_AFTER = 20.0
"""Seconds of a pass beside which its warming up is nothing, so that it is not made twice."""


@dataclass
class Timed:
    """Seconds of a microbatch's pass and of a step's update, warm; and what both took longer at first."""

    passed: float
    updated: float
    warmup: float


@dataclass
class Subject:
    """A stage as the dry run has it.

    Attributes:
        order, prepared: None where there is no data.
    """

    recipe: Recipe
    name: str
    stage: Stage
    clock: Clock
    course: Course
    order: Order | None
    prepared: Prepared | None
    decisions: Decisions


@dataclass
class Rehearsal:
    """One stage's model, and what its steps were found to take.

    Attributes:
        pace: of the machine; all seconds are levelled to its first probe.
        opening: seconds that the model took to build.
        base: bytes that the process held before.
        first_loss: of the first microbatch under the fresh weights.
        timed: by shape.
        look: seconds of a look at numerical health; 0 where there is none.
    """

    subject: Subject
    pace: Pace
    opening: float = 0.0
    base: int = 0
    first_loss: float = 0.0
    timed: dict[Shape, Timed] = field(default_factory=dict)
    look: float = 0.0

    def __post_init__(self) -> None:
        """Build the model, in memory that is measured from here on."""
        recipe, stage, decisions = self.subject.recipe, self.subject.stage, self.subject.decisions
        self.device = torch.device(decisions.device)
        begun = time.perf_counter()
        self.base = held_now(self.device)
        self.model = recipe.model_of(self.subject.name)
        self.module = build(self.model, decisions.vocabulary, recipe.seed, self.device, scores=stage.scores)
        self.trained = lora.restrict(self.module, stage, self.subject.name, recipe.seed)
        self.optimizer: optim.AdamW = optim.build(self.module, stage.optimizer)
        self.opening = time.perf_counter() - begun
        self.objective = objectives.build(stage, dry_run=True)
        self.engine = LocalEngine(self.module, decisions.precision, self.device)

    def train(self, shapes: Mapping[Shape, Microbatch], at_once: int) -> None:
        """Time steps of microbatches of these shapes.

        Args:
            at_once: microbatches of a step: of several the second is timed too.
        """
        first = self.subject.clock.boundary(1)
        self.values = self.subject.clock.values(0, first)._replace(learning_rate=0.0)
        for number, (shape, microbatch) in enumerate(shapes.items()):
            loss, self.timed[shape] = self._time(microbatch, min(2, at_once))
            self.first_loss = loss if number == 0 else self.first_loss
        if self.subject.course.looks:
            self._look(microbatch)

    def _time(self, microbatch: Microbatch, at_once: int) -> tuple[float, Timed]:
        losses, passes, updates = [], [], []
        begun, before = time.perf_counter(), self.pace.probe()
        while True:
            result, passed, updated = self._step(microbatch, at_once)
            around = before, (before := self.pace.probe())
            losses.append(result.loss)
            passes.append(self.pace.levelled(passed, *around) / at_once)
            updates.append(self.pace.levelled(updated, *around))
            if passed > WARM_AFTER:
                break
            if len(passes) == 1:
                begun = time.perf_counter()
            elif len(passes) > MOST_ROUNDS or (
                len(passes) > FEWEST_ROUNDS and time.perf_counter() - begun > SECONDS
            ):
                break
        warm = slice(1, None) if len(passes) > 1 else slice(None)
        passed, updated = statistics.median(passes[warm]), statistics.median(updates[warm])
        cold = at_once * (passes[0] - passed) + updates[0] - updated
        return losses[0], Timed(passed, updated, max(0.0, cold))

    def _step(self, microbatch: Microbatch, at_once: int) -> tuple[StepResult, float, float]:
        """A step, and the seconds of its passes and of its update."""
        batch = _batch([microbatch] * at_once)
        objective = self.objective.at(self.values)
        synchronize(self.device)
        begun = time.perf_counter()
        passed = self.engine.forward_backward(
            batch.microbatches, objective, objective.normaliser(batch), batch.valid_tokens
        )
        synchronize(self.device)
        between = time.perf_counter()
        clip = self.subject.stage.gradient_clip
        result = update(self.engine, self.optimizer, passed, self.values, clip)
        synchronize(self.device)
        return result, between - begun, time.perf_counter() - between

    def _look(self, microbatch: Microbatch) -> None:
        look = Look(self.engine, self.optimizer, self.objective, _batch([microbatch]))
        result, _, _ = self._step(microbatch, 1)
        look.finish(result.gradient_norm)
        self.look = look.seconds

    def seconds(self, step: Mapping[Shape, int]) -> float:
        """Of a step of so many microbatches of these shapes."""
        spent = [count * self._pass(shape) for shape, count in step.items()]
        return sum(spent) + statistics.median(one.updated for one in self.timed.values())

    def _pass(self, shape: Shape) -> float:
        if shape in self.timed:
            return self.timed[shape].passed
        like = min(self.timed, key=lambda other: (abs(np.log(other[1] / shape[1])), abs(other[0] - shape[0])))
        return self.timed[like].passed * self._flops(shape) / self._flops(like)

    def _flops(self, shape: Shape) -> float:
        rows, length = shape
        vocabulary = self.subject.decisions.vocabulary
        return rows * length * trained.flops_per_token(self.model, vocabulary, self.trained, length)

    def phases(self, steps: Mapping[Size, Mapping[Shape, int]]) -> tuple[Phase, ...]:
        """The stage's, whose steps are made of microbatches of these shapes."""
        return tuple(
            Phase(length, tokens, count, self.seconds(steps[length, tokens]))
            for (length, tokens), count in self.subject.course.steps.items()
        )

    @property
    def warmup(self) -> float:
        """Seconds that the first steps of the stage take longer."""
        return sum(one.warmup for one in self.timed.values())


def _batch(microbatches: list[Microbatch]) -> Batch:
    valid = sum(int((part.targets >= 0).sum()) for part in microbatches)
    sequences = sum(part.answers.count for part in microbatches if part.answers)
    return Batch(0, 0, microbatches, {}, valid, sequences)


def steps_of(subject: Subject) -> tuple[dict[Size, Counter[Shape]], dict[Shape, Microbatch]]:
    """Of a stage that reads rows: the microbatches of a step of each size, by shape; and one of each shape
    that is worth trying, with those first that the stage begins with."""
    order, prepared = subject.order, subject.prepared
    made: dict[Size, Counter[Shape]] = {}
    found: dict[Shape, Microbatch] = {}
    tokens: Counter[Shape] = Counter()
    reader = None
    if order is not None and prepared is not None:
        stores = prepared.train_stores(subject.stage)
        reader = Reader(order, stores, subject.decisions.microbatch_tokens, rank=0, ranks=1)
    for size, (start, end) in subject.course.first.items():
        if reader is None:
            microbatches = _made_up(subject, *size)
        else:
            microbatches = reader.batch(start, end).microbatches
        made[size] = Counter(_shape(microbatch) for microbatch in microbatches)
        for microbatch in microbatches:
            shape = _shape(microbatch)
            found.setdefault(shape, microbatch)
            tokens[shape] += microbatch.tokens.numel() * subject.course.steps[size]
    first = next(iter(found))
    worth = {first, *(shape for shape, _ in tokens.most_common(MOST_SHAPES))}
    return made, {shape: microbatch for shape, microbatch in found.items() if shape in worth}


def _shape(microbatch: Microbatch) -> Shape:
    rows, length = microbatch.tokens.shape
    return rows, length


def _made_up(subject: Subject, length: int, tokens: int) -> list[Microbatch]:
    """Random microbatches of a step."""
    rows, at_once = max(1, tokens // length), max(1, subject.decisions.microbatch_tokens // length)
    full, rest = divmod(rows, at_once)
    whole = [random_rows(subject, at_once, length)] * full if full else []
    return [*whole, *([random_rows(subject, rest, length)] if rest else [])]


def random_rows(subject: Subject, rows: int, length: int) -> Microbatch:
    """Rows of random tokens, of which a stage that learns answers finds two in each."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(1, subject.decisions.vocabulary, (rows, length + 1), generator=generator)
    if subject.stage.reads == "text":
        return Microbatch.of_rows(tokens)
    return _two_answers(tokens, subject.stage)


def _two_answers(tokens: torch.Tensor, stage: Stage) -> Microbatch:
    """Rows of two sequences each, all of which is learnt, with token 0 before and after each; the second
    one is the rejected one of a pair, or another's of rated answers."""
    middle = tokens.shape[1] // 2
    tokens[:, [0, middle, -1]] = 0
    learnt = (tokens != 0).numpy().astype(np.uint8) * LEARNT
    learnt[:, middle:] *= MISMATCHED if stage.reads == "rated" else REJECTED
    return Microbatch.of_rows(tokens, delimiter=0, learnt=learnt)
