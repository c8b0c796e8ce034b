"""A stage's clock: every schedule as a pure function of the position, in tokens.

Three questions have their answer here and nowhere else: how long is the row that begins at a position,
where does the batch that begins there end, and what is the learning rate of that step. Nothing is
counted, so nothing has to be restored on resume.

Row lengths change only at the end of a *window* of `SPANS_PER_WINDOW` spans (a span is the stage's
longest row), so that the order of the tokens does not depend on when the length grows. A batch is whole
rows; its end is the row boundary nearest to the ideal one, so what rounding leaves is carried on to the
next batch.
"""

import math
from collections.abc import Iterator

from cupola.errors import InputError
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import LearningRate, Stage

SPANS_PER_WINDOW = 16


class Clock:
    """The schedules of one stage.

    Args:
        stage: with `sequence_length`, `batch_tokens` and `tokens` resolved (none of them None).
        epoch_tokens: tokens in one epoch of the mixture; needed only if the horizon is in epochs.
    """

    def __init__(self, stage: Stage, epoch_tokens: int | None = None) -> None:
        if stage.sequence_length is None or stage.batch_tokens is None or stage.tokens is None:
            raise InputError("a stage needs tokens, sequence_length and batch_tokens")
        self.stage = stage
        self.span = max(stage.sequence_length.values)
        self.window = self.span * SPANS_PER_WINDOW
        self.total = self._horizon(stage.tokens, epoch_tokens)
        self._lengths = self._window_lengths()
        self._batches = stage.batch_tokens.starts(self.total)
        self.warmup = self.tokens_of(stage.learning_rate.warmup)

    def _horizon(self, horizon: Quantity, epoch_tokens: int | None) -> int:
        if horizon.unit == "tokens":
            total = int(horizon.amount)
        elif horizon.unit == "epochs":
            if epoch_tokens is None:
                raise InputError("a horizon in epochs needs the size of the corpus")
            total = round(horizon.amount * epoch_tokens)
        else:
            total = self._horizon_of_steps(int(horizon.amount))
        if total < 1:
            raise InputError("the stage's horizon is empty")
        return total

    def _horizon_of_steps(self, steps: int) -> int:
        """Tokens after `steps` batches. Positions in percent make this a fixed point: the share of the steps
        equals the share of the tokens only roughly, so each phase gets its share of the steps."""
        assert self.stage.batch_tokens is not None
        phases = self.stage.batch_tokens.steps
        if any(start.unit != "%" for start, _ in phases[1:]):
            raise InputError("a horizon in steps goes with batch_tokens at percentages, not at tokens")
        mean = 0.0
        ends = [start.amount / 100 for start, _ in phases[1:]] + [1.0]
        begin = 0.0
        for (_, size), end in zip(phases, ends, strict=True):
            mean += (end - begin) / size
            begin = end
        return round(steps / mean)

    def _window_lengths(self) -> list[tuple[int, int]]:
        """(window index, row length) of every change, on the grid of windows."""
        assert self.stage.sequence_length is not None
        changes: dict[int, int] = {}
        for start, length in self.stage.sequence_length.starts(self.total):
            changes[math.ceil(start / self.window)] = length
        return sorted(changes.items())

    def sequence_length(self, position: int) -> int:
        """Length of the row that begins at a position (or contains it)."""
        window = position // self.window
        current = self._lengths[0][1]
        for start, length in self._lengths[1:]:
            if start > window:
                break
            current = length
        return current

    def _nearest_row(self, position: float) -> int:
        """The row boundary nearest to a position."""
        length = self.sequence_length(int(position))
        base = int(position) // self.window * self.window
        return base + math.floor((position - base) / length + 0.5) * length

    @property
    def end(self) -> int:
        """Where the stage's last row ends: `total` on the grid of rows, at least one row."""
        return max(self._nearest_row(self.total), self.sequence_length(0))

    def next_boundary(self, position: int) -> int:
        """Where the batch that begins at a row boundary ends."""
        phase = 0
        for index, (start, _) in enumerate(self._batches):
            if self._nearest_row(start) <= position:
                phase = index
        start, size = self._batches[phase]
        limit = self._batches[phase + 1][0] if phase + 1 < len(self._batches) else self.total
        number = max(1, (position - start) // size)
        while (boundary := self._nearest_row(min(start + number * size, limit))) <= position:
            if start + number * size >= limit:
                # The phase has no whole row left: go on to the end of the stage's grid.
                return max(self.end, position + self.sequence_length(position))
            number += 1
        return min(boundary, self.end) if position < self.end else boundary

    def steps(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """(start, end) of every batch from a position to the end of the stage."""
        while position < self.end:
            boundary = self.next_boundary(position)
            yield position, boundary
            position = boundary

    def tokens_of(self, quantity: Quantity) -> int:
        """A quantity on this clock, in tokens: a percentage of the stage, tokens, or a number of steps."""
        if quantity.unit == "%":
            return round(self.total * quantity.amount / 100)
        if quantity.unit != "steps":
            return int(quantity.amount)
        position = 0
        for number, (_, boundary) in enumerate(self.steps()):
            if number >= quantity.amount:
                break
            position = boundary
        return position

    def due(self, interval: Quantity, start: int, end: int) -> bool:
        """Does the step from `start` to `end` reach a multiple of the interval?"""
        if interval.unit == "steps":
            step = sum(1 for _ in self._steps_until(end))
            return interval.amount >= 1 and step % int(interval.amount) == 0
        tokens = max(1, self.tokens_of(interval))
        return end // tokens > start // tokens

    def _steps_until(self, end: int) -> Iterator[tuple[int, int]]:
        for start, boundary in self.steps():
            if boundary > end:
                return
            yield start, boundary

    def learning_rate(self, start: int, end: int) -> float:
        """The learning rate of the step from `start` to `end`: the schedule at the step's middle."""
        return learning_rate(self.stage.learning_rate, (start + end) / 2, self.warmup, self.end)


def learning_rate(settings: LearningRate, position: float, warmup: int, total: int) -> float:
    """Linear warm-up to the peak, then cosine (Loshchilov and Hutter 2017) or linear decay, or a constant."""
    if position < warmup:
        return settings.peak * position / warmup
    if settings.decay == "constant" or total <= warmup:
        return settings.peak
    share = min(1.0, (position - warmup) / (total - warmup))
    fall = (1 + math.cos(math.pi * share)) / 2 if settings.decay == "cosine" else 1 - share
    return settings.peak * (settings.final + (1 - settings.final) * fall)
