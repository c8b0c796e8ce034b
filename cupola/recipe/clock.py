"""A stage's clock: every schedule as a pure function of the position, in tokens.

Three questions have their answer here and nowhere else: how long is the row that begins at a position,
where does the n-th batch end, and what is the learning rate of a step. Each is closed form (nothing is
counted, so nothing has to be restored on resume) and costs microseconds at any position.

Row lengths change only between *windows* of `SPANS_PER_WINDOW` spans (a span is the stage's longest row),
so that the order of the tokens does not depend on when the length changes; a window takes the shortest
length asked for anywhere in it. A span is cut into columns of that length; what is left, where it does not
divide the span, is a shorter column. A batch size changes only after a whole batch, and never later than
asked when it grows. So a batch is never smaller than asked where it begins, save the last and what rounding
to whole rows takes or gives, which the next batches make up: over any stretch of one size the total is exact
to a row.
"""

import bisect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from cupola.errors import InputError
from cupola.recipe.curve import Curve, late_changes
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import LearningRate, Optimizer, Stage

SPANS_PER_WINDOW = 16
MOST_NOTES = 3


class Phase(NamedTuple):
    """A stretch of one batch size: its first step, where that step ideally begins, tokens of a batch."""

    step: int
    start: int
    size: int


class Stretch(NamedTuple):
    """Steps that ask for the same: the first, how many, positions of their beginning and end, tokens of a
    batch, and of the rows that each begins with."""

    step: int
    steps: int
    start: int
    end: int
    batch_tokens: int
    sequence_length: int


class StepValues(NamedTuple):
    """What one step is taken with."""

    learning_rate: float
    weight_decay: float
    momentum: float
    z_loss: float


POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""Of the batch's size, by which the learning rate goes: linear (Goyal et al. 2017) suits SGD, the square root
Adam (Malladi et al. 2022)."""


class Clock:
    """The schedules of one stage.

    Args:
        stage: as `cupola.recipe.loading.load` resolves it.
        epoch_tokens: tokens in one epoch of the mixture; needed only if the horizon is in epochs.

    Raises:
        InputError: horizon, warm-up or decay don't make sense, a setting changes after the stage's end, a
            row length leaves too little of the longest, or a batch is less than a row.
    """

    def __init__(self, stage: Stage, epoch_tokens: int | None = None) -> None:
        if stage.sequence_length is None or stage.batch_tokens is None or stage.tokens is None:
            raise InputError("a stage needs tokens, sequence_length and batch_tokens")
        self.stage = stage
        if fault := length_fault(stage.sequence_length.values):
            raise InputError(f"sequence_length {fault}")
        self.span = max(stage.sequence_length.values)
        self.window = self.span * SPANS_PER_WINDOW
        steps = int(stage.tokens.amount) if stage.tokens.unit == "steps" else None
        estimate = (
            _tokens_of_steps(stage) if steps is not None else _tokens_of_horizon(stage.tokens, epoch_tokens)
        )
        # Of two changes at one token the later counts.
        self._lengths = list(dict(stage.sequence_length.starts(estimate)).items())
        sizes = stage.batch_tokens.starts(estimate)
        _check_batches(sizes, self._lengths, estimate)
        self._phases = _whole_batches(sizes, estimate)
        last = self._phases[-1]
        self.total = estimate if steps is None else last.start + (steps - last.step) * last.size
        """The tokens asked for; `end` is this on the grid of rows."""
        self.end = max(self._nearest_row(self.total), self.sequence_length(0))
        """Where the last batch ends."""
        self.step_count = last.step + -(-(self.total - last.start) // last.size)
        """Number of batches."""
        if self.step_count > 1 and self.boundary(self.step_count - 1) == self.end:
            self.step_count -= 1  # what is left after the last whole batch is less than half a row
        self.warmup = self._length("warm-up", stage.learning_rate.warmup)
        self.decay_start = self._decay_start(stage.learning_rate)
        """Where the learning rate begins to fall."""
        _check_changes(stage, self.total)

    def _length(self, what: str, asked: Quantity) -> int:
        """A part of the stage, in tokens, from its beginning; of a stage of a few tokens at least one."""
        tokens = max(self.tokens_of(asked), 1 if asked.amount else 0)
        if asked.unit == "steps" and asked.amount > self.step_count:
            raise InputError(f"a {what} of {asked} is longer than the stage ({self.step_count:,} steps)")
        if tokens > max(self.total, self.end):
            raise InputError(f"a {what} of {tokens:,} tokens is longer than the stage ({self.total:,})")
        return tokens

    def _decay_start(self, settings: LearningRate) -> int:
        if settings.decay == "inverse_sqrt" and not self.warmup:
            raise InputError("decay inverse_sqrt falls as sqrt(warmup / position): it needs a warm-up")
        if settings.decay_over is None:
            return self.warmup
        self._length("decay", settings.decay_over)
        if settings.decay_over.unit == "steps":
            start = self.boundary(self.step_count - int(settings.decay_over.amount))
        else:
            start = self.total - self.tokens_of(settings.decay_over)
        if start < self.warmup - 1:  # two percentages that make up the stage may overlap by a token
            raise InputError(
                f"warm-up and decay together are longer than the stage: the decay over {settings.decay_over} "
                f"begins at {start:,} tokens, the warm-up ends at {self.warmup:,}; shorten either"
            )
        return max(start, self.warmup)

    def notes(self) -> list[str]:
        """What a person should hear of the schedules: batches that are no whole number of rows, a stage that
        is one batch, a decay that never comes."""
        starts = {phase.start: phase.size for phase in self._phases}
        lengths = (start for start, _ in self._lengths)
        windows = (-(-start // self.window) * self.window for start, _ in self._lengths)  # where they count
        found = {}
        for position in sorted({*starts, *lengths, *windows}):
            if position >= self.end:
                break
            size = starts[max(start for start in starts if start <= position)]
            length = self.sequence_length(position)
            if size % length:
                found[size, length] = (
                    f"batch_tokens {size} is no multiple of the row of {length}: batches alternate between "
                    f"{size // length} and {size // length + 1} rows"
                )
        lines = list(found.values())
        if len(lines) > MOST_NOTES:
            lines = [*lines[: MOST_NOTES - 1], f"and so on: {len(lines)} such pairs of batch and row in all"]
        size = self._phases[0].size
        if size > self.end:
            lines.append(
                f"a batch of {size:,} tokens is more than the stage has, {self.end:,}: it is one step"
            )
        if self.warmup >= self.total > 0 and self.stage.learning_rate.decay != "constant":
            lines.append("the warm-up takes the whole stage, and nothing is left for the decay")
        return lines

    def sequence_length(self, position: int) -> int:
        """Length of the row that begins at a position, or contains it."""
        begin = position // self.window * self.window
        first = bisect.bisect_right(self._lengths, begin, key=lambda change: change[0]) - 1
        last = bisect.bisect_left(self._lengths, begin + self.window, key=lambda change: change[0])
        return min(length for _, length in self._lengths[first:last])

    def rows_of(self, length: int) -> tuple[int, int]:
        """(columns of a span cut into rows of a length, length of the last): the last column is what is left,
        where the length does not divide the span."""
        columns = -(-self.span // length)
        return columns, self.span - (columns - 1) * length

    def row_at(self, position: int) -> int:
        """Number, in its window, of the row that begins at a position or contains it; rows go column by
        column."""
        length = self.sequence_length(position)
        columns, last = self.rows_of(length)
        place = position % self.window
        full = (columns - 1) * length * SPANS_PER_WINDOW
        if place < full:
            return place // length
        return (columns - 1) * SPANS_PER_WINDOW + (place - full) // last

    def row_start(self, window: int, row: int) -> int:
        """Position at which the row of that number in a window begins; of the row after its last, where the
        window ends."""
        length = self.sequence_length(window * self.window)
        columns, last = self.rows_of(length)
        full = (columns - 1) * SPANS_PER_WINDOW
        return window * self.window + min(row, full) * length + max(0, row - full) * last

    def begins_row(self, position: int) -> bool:
        """Whether a position is the boundary of a row."""
        return self.row_start(position // self.window, self.row_at(position)) == position

    def _nearest_row(self, position: int) -> int:
        """The boundary between rows that is nearest to a position; of two, the later one."""
        window, row = position // self.window, self.row_at(position)
        before, after = self.row_start(window, row), self.row_start(window, row + 1)
        return after if 2 * position >= before + after else before

    def boundary(self, step: int) -> int:
        """Where the first `step` batches end."""
        if step >= self.step_count:
            return self.end
        phase = self._phase(step)
        return self._nearest_row(phase.start + (step - phase.step) * phase.size)

    def _phase(self, step: int) -> Phase:
        return self._phases[bisect.bisect_right(self._phases, step, key=lambda phase: phase.step) - 1]

    def step_at(self, position: int) -> int:
        """How many batches are whole at a position; the inverse of `boundary`."""
        return bisect.bisect_right(range(1, self.step_count + 1), position, key=self.boundary)

    def next_boundary(self, position: int) -> int:
        """Where the batch ends that begins at a position, or contains it."""
        return self.boundary(self.step_at(position) + 1)

    def steps(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """(start, end) of every batch from a position to the end of the stage."""
        for step in range(self.step_at(position) + 1, self.step_count + 1):
            end = self.boundary(step)
            yield position, end
            position = end

    def stretches(self) -> list[Stretch]:
        """All steps, in stretches of one batch size and one row length: what `steps` says, without a loop
        over them."""
        firsts = {phase.step for phase in self._phases}
        for start, _ in self._lengths[1:]:
            for window in (start // self.window, -(-start // self.window)):  # the shorter length counts
                step = self.step_at(window * self.window)
                firsts.add(step + (self.boundary(step) < window * self.window))
        inner = sorted(step for step in firsts if step < self.step_count)
        found = []
        for step, following in zip(inner, [*inner[1:], self.step_count], strict=True):
            start, size = self.boundary(step), self._phase(step).size
            length = self.sequence_length(start)
            found.append(Stretch(step, following - step, start, self.boundary(following), size, length))
        return found

    def tokens_of(self, quantity: Quantity) -> int:
        """A quantity on this clock, in tokens: a percentage of the stage, tokens, or a number of steps."""
        if quantity.unit == "steps":
            return self.boundary(int(quantity.amount))
        return round(self.total * quantity.amount / 100) if quantity.unit == "%" else int(quantity.amount)

    def due(self, interval: Quantity, start: int, end: int) -> bool:
        """Does a batch from `start` on, up to `end`, reach a multiple of the interval?"""
        if interval.unit == "steps":
            return self.step_at(end) // int(interval.amount) > self.step_at(start) // int(interval.amount)
        tokens = max(1, self.tokens_of(interval))
        return end // tokens > start // tokens

    def values(self, start: int, end: int) -> StepValues:
        """What the step from `start` to `end` is taken with: the schedules at its middle."""
        middle = (start + end) / 2
        optimizer = self.stage.optimizer or Optimizer()
        return StepValues(
            learning_rate=self.learning_rate(start, end),
            weight_decay=optimizer.weight_decay.at(middle, self.total),
            momentum=optimizer.momentum.at(middle, self.total),
            z_loss=self.stage.z_loss.at(middle, self.total),
        )

    def learning_rate(self, start: int, end: int) -> float:
        """The learning rate of the step from `start` to `end`: the schedule at its middle, so never 0."""
        settings = self.stage.learning_rate
        shape = learning_rate(settings, (start + end) / 2, self.warmup, self.decay_start, self.end)
        largest = max(phase.size for phase in self._phases)
        return shape * (self._phase(self.step_at(start)).size / largest) ** POWERS[settings.batch_rule]


def learning_rate(
    settings: LearningRate, position: float, warmup: int, decay_start: int, total: int
) -> float:
    """Linear warm-up to the peak, a stretch at the peak, then the decay to `final`.

    Decays: cosine (Loshchilov and Hutter 2017); linear; 1-sqrt (Hägele et al. 2024, eq. 1); inverse_sqrt of
    the position (Vaswani et al. 2017, eq. 3), never below `final`; or shares of the peak at positions.
    """
    warm = position / warmup if position < warmup else 1.0
    if isinstance(settings.decay, Curve):
        return settings.peak * warm * settings.decay.at(position, total)
    if position < max(warmup, decay_start) or settings.decay == "constant":
        return settings.peak * warm
    if settings.decay == "inverse_sqrt":
        return settings.peak * max(settings.final, math.sqrt(max(warmup, decay_start) / position))
    left = (total - position) / (total - decay_start)
    height = left
    if settings.decay == "cosine":
        # (1 + cos(pi (1 - left))) / 2, without the difference of nearly equal numbers at the end
        height = math.sin(math.pi / 2 * left) ** 2
    elif settings.decay == "1-sqrt":
        height = left / (1 + math.sqrt(1 - left))  # 1 - sqrt(1 - left), likewise
    return settings.peak * (settings.final + (1 - settings.final) * height)


def _tokens_of_horizon(horizon: Quantity, epoch_tokens: int | None) -> int:
    if horizon.unit != "epochs":
        return int(horizon.amount)
    if epoch_tokens is None:
        raise InputError("a horizon in epochs needs the size of the corpus")
    return max(1, round(horizon.amount * epoch_tokens))


def _tokens_of_steps(stage: Stage) -> int:
    """About how many tokens a horizon in steps is: each batch size holds for its share of the tokens.

    Only the positions of changes rest on this; the number of steps is exact.
    """
    assert stage.batch_tokens is not None
    assert stage.sequence_length is not None
    assert stage.tokens is not None
    for name, schedule in (("batch_tokens", stage.batch_tokens), ("sequence_length", stage.sequence_length)):
        if any(start.unit != "%" for start, _ in schedule.steps if start.amount):
            raise InputError(f"{name}: with a horizon in steps, positions are percentages, such as 40%")
    phases = stage.batch_tokens.steps
    ends = [start.amount / 100 for start, _ in phases[1:]] + [1.0]
    steps_per_token = 0.0
    begin = 0.0
    for (_, size), end in zip(phases, ends, strict=True):
        steps_per_token += (end - begin) / size
        begin = end
    return round(stage.tokens.amount / steps_per_token)


def _check_changes(stage: Stage, total: int) -> None:
    """Every change of a setting lies within the stage."""
    optimizer = stage.optimizer or Optimizer()
    settings: dict[str, Any] = {
        "data": stage.data,
        "sequence_length": stage.sequence_length,
        "batch_tokens": stage.batch_tokens,
        "learning_rate.decay": stage.learning_rate.decay,
        "z_loss": stage.z_loss,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.momentum": optimizer.momentum,
    }
    for name, value in settings.items():
        late = [] if isinstance(value, str) else late_changes(value, total)
        if late:
            raise InputError(
                f"{name} changes at {late[0]}, but the stage ends at {total:,} tokens; move the change, "
                "or let the stage be longer"
            )


def length_fault(lengths: list[int]) -> str | None:
    """What is wrong with the row lengths of a stage: what one leaves of the longest is a row as well, so it
    must not be a scrap."""
    longest, shortest = max(lengths), min(lengths)
    for length in lengths:
        rest = longest % length
        if 0 < rest < shortest:
            fitting = next(part for part in range(length, 0, -1) if longest % part == 0)
            return (
                f"{length} does not divide the longest, {longest}, and leaves rows of {rest}, shorter than "
                f"any asked for; take a divisor, such as {fitting}, or one that leaves at least {shortest}"
            )
    return None


def _check_batches(sizes: list[tuple[int, int]], lengths: list[tuple[int, int]], total: int) -> None:
    """A batch is at least one row, wherever it begins."""
    for position in sorted({start for start, _ in sizes + lengths if start < total}):
        size = next(value for start, value in reversed(sizes) if start <= position)
        length = next(value for start, value in reversed(lengths) if start <= position)
        if size < length:
            raise InputError(
                f"batch_tokens {size} at {position / total:.0%} is less than one row of {length} tokens; "
                f"let batch_tokens be at least {length} from there, or sequence_length at most {size}"
            )


def _whole_batches(sizes: list[tuple[int, int]], total: int) -> list[Phase]:
    """The stretches of one batch size, each but the last a whole number of batches.

    A larger size begins with the batch in which its position falls, a smaller one with the batch after, so
    that no batch is smaller than what is asked for where it begins.
    """
    step, start, size = 0, 0, sizes[0][1]
    phases = []
    for asked, next_size in sizes[1:]:
        distance = max(0, asked - start)
        batches = distance // size if next_size > size else -(-distance // size)
        if start + batches * size >= total:
            break
        if batches:
            phases.append(Phase(step, start, size))
        step, start, size = step + batches, start + batches * size, next_size
    return [*phases, Phase(step, start, size)]
