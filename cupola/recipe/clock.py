"""A stage's clock: every schedule as a pure function of the position, in tokens.

Three questions have their answer here and nowhere else: how long is the row that begins at a position,
where does the n-th batch end, and what is the learning rate of a step. Each is closed form (nothing is
counted, so nothing has to be restored on resume) and costs microseconds at any position.

Row lengths change only between *windows* of `SPANS_PER_WINDOW` spans (a span is the stage's longest row),
so that the order of the tokens does not depend on when the length changes; a window takes the shortest
length asked for anywhere in it. A batch size changes only after a whole batch, and never later than asked
when it grows. So a batch is never smaller than asked where it begins, save the last and what rounding to
whole rows takes or gives, which the next batches make up: over any stretch of one size the total is exact
to a row.
"""

import bisect
import math
from collections.abc import Iterator
from typing import NamedTuple

from cupola.errors import InputError
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import LearningRate, Stage

SPANS_PER_WINDOW = 16


class Phase(NamedTuple):
    """A stretch of one batch size: its first step, where that step ideally begins, tokens of a batch."""

    step: int
    start: int
    size: int


class Clock:
    """The schedules of one stage.

    Args:
        stage: as `cupola.recipe.loading.load` resolves it.
        epoch_tokens: tokens in one epoch of the mixture; needed only if the horizon is in epochs.

    Raises:
        InputError: the horizon or the warm-up doesn't make sense, or a batch is less than a row.
    """

    def __init__(self, stage: Stage, epoch_tokens: int | None = None) -> None:
        if stage.sequence_length is None or stage.batch_tokens is None or stage.tokens is None:
            raise InputError("a stage needs tokens, sequence_length and batch_tokens")
        self.stage = stage
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
        self.warmup = self._warmup(stage.learning_rate.warmup)

    def _warmup(self, asked: Quantity) -> int:
        tokens = self.tokens_of(asked)
        if asked.unit == "steps" and asked.amount > self.step_count:
            raise InputError(f"a warm-up of {asked} is longer than the stage ({self.step_count:,} steps)")
        if tokens > max(self.total, self.end):
            raise InputError(f"a warm-up of {tokens:,} tokens is longer than the stage ({self.total:,})")
        return tokens

    def notes(self) -> list[str]:
        """What a person should hear of the batches: those that are no whole number of rows."""
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
        return list(found.values())

    def sequence_length(self, position: int) -> int:
        """Length of the row that begins at a position, or contains it."""
        begin = position // self.window * self.window
        first = bisect.bisect_right(self._lengths, begin, key=lambda change: change[0]) - 1
        last = bisect.bisect_left(self._lengths, begin + self.window, key=lambda change: change[0])
        return min(length for _, length in self._lengths[first:last])

    def _nearest_row(self, position: int) -> int:
        """The boundary between rows that is nearest to a position; of two, the later one."""
        length = self.sequence_length(position)
        base = position // self.window * self.window
        return base + (2 * (position - base) + length) // (2 * length) * length

    def boundary(self, step: int) -> int:
        """Where the first `step` batches end."""
        if step >= self.step_count:
            return self.end
        phase = self._phases[bisect.bisect_right(self._phases, step, key=lambda phase: phase.step) - 1]
        return self._nearest_row(phase.start + (step - phase.step) * phase.size)

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

    def tokens_of(self, quantity: Quantity) -> int:
        """A quantity on this clock, in tokens: a percentage of the stage, tokens, or a number of steps."""
        if quantity.unit == "steps":
            return self.boundary(int(quantity.amount))
        return round(self.total * quantity.amount / 100) if quantity.unit == "%" else int(quantity.amount)

    def due(self, interval: Quantity, start: int, end: int) -> bool:
        """Does the batch from `start` to `end` reach a multiple of the interval?"""
        if interval.unit == "steps":
            return self.step_at(end) % int(interval.amount) == 0
        tokens = max(1, self.tokens_of(interval))
        return end // tokens > start // tokens

    def learning_rate(self, start: int, end: int) -> float:
        """The learning rate of the step from `start` to `end`: the schedule at its middle, so never 0."""
        return learning_rate(self.stage.learning_rate, (start + end) / 2, self.warmup, self.end)


def learning_rate(settings: LearningRate, position: float, warmup: int, total: int) -> float:
    """Linear warm-up to the peak, then cosine (Loshchilov and Hutter 2017) or linear decay, or a constant."""
    if position < warmup:
        return settings.peak * position / warmup
    if settings.decay == "constant":
        return settings.peak
    left = (total - position) / (total - warmup)
    # (1 + cos(pi (1 - left))) / 2, without the difference of nearly equal numbers at the end
    height = math.sin(math.pi / 2 * left) ** 2 if settings.decay == "cosine" else left
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
