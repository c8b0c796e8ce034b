"""Which source the g-th span of a stage comes from, and the how-manieth of that source it is.

Guarantees: weights are whole parts of `PARTS`; over one period every source appears exactly as often as
its parts say, and in any prefix of a phase its count is off the exact share by less than one entry
(1 - 1/(2n - 2) for n sources). Both answers are looked up, in constant time, for any span of the stage.
Costs: two tables of a few hundred kilobytes at most, made once in some ten milliseconds.
Trade-off: a weight below 1/4096 counts as 1/4096, so that no source is starved. `Order.notes` says so.

"Always the source furthest below its share" is the obvious way to lay out a period, but with many sources
its error grows beyond one entry (1.15 measured with a thousand). The bound above is the best possible, and
the layout is the one that reaches it: Tijdeman, "The chairman assignment problem" (1980), which among the
sources that may be served takes the one that must be served soonest.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cupola.errors import InputError

PARTS = 4096


def quantise(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole parts that sum to exactly `PARTS`, each at least 1.

    Largest remainders; ties go to the name that sorts first, so that the order in which a recipe lists its
    sources does not matter.

    Raises:
        InputError: more than `PARTS` sources.
    """
    if len(weights) > PARTS:
        raise InputError(
            f"a mixture of {len(weights):,} sources; at most {PARTS:,} can be mixed, so merge some"
        )
    names = sorted(weights)
    whole = math.fsum(weights.values())
    exact = {name: weights[name] / whole * PARTS for name in names}
    parts = {name: max(1, math.floor(exact[name])) for name in names}
    spare = PARTS - sum(parts.values())
    while spare:
        step = 1 if spare > 0 else -1
        able = [name for name in names if parts[name] + step >= 1]
        able.sort(key=lambda name: step * (parts[name] - exact[name]))
        for name in able[: abs(spare)]:
            parts[name] += step
            spare -= step
    return parts


def lay_out(parts: Sequence[int]) -> np.ndarray:
    """One period: which source each slot has, each source as often as its parts.

    With d = 1/(2n - 2), a source with c entries so far may be served once its share exceeds c by d, and
    must be before it exceeds c by more than 1 - d; of those that may, the most urgent is served.

    Args:
        parts: of each source, at least 1.

    Returns:
        int32 (sum of parts,).
    """
    period, fineness = sum(parts), max(2, 2 * len(parts) - 2)

    def slots(source: int, entry: int) -> tuple[int, int]:
        """First and last slot for an entry of a source, in exact arithmetic."""
        whole = fineness * parts[source]
        first = -(-(entry * fineness + 1) * period // whole) - 1
        return first, ((entry + 1) * fineness - 1) * period // whole

    waiting = [(*slots(source, 0), source, 0) for source in range(len(parts))]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    table = np.empty(period, dtype=np.int32)
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            heapq.heappush(ready, heapq.heappop(waiting)[1:])
        _, source, entry = heapq.heappop(ready)
        table[slot] = source
        if entry + 1 < parts[source]:
            heapq.heappush(waiting, (*slots(source, entry + 1), source, entry + 1))
    return table


@dataclass(frozen=True)
class Phase:
    """A stretch of the stage with constant weights.

    Attributes:
        start: its first span.
        parts: of each source, 0 where the phase does not use it; int64 (sources,).
        source: by slot of the period; int32 (period,).
        before: entries of the slot's own source in the slots before it; int64 (period,).
        counts: entries of each source in one period; int64 (sources,).
        base: entries of each source in all phases before; int64 (sources,).
    """

    start: int
    parts: np.ndarray
    source: np.ndarray
    before: np.ndarray
    counts: np.ndarray
    base: np.ndarray

    @classmethod
    def begin(cls, start: int, parts: np.ndarray, base: np.ndarray) -> "Phase":
        """Lay out a phase; the period is as short as the weights allow."""
        used = np.flatnonzero(parts)
        counts = parts // math.gcd(*parts.tolist())
        source = used.astype(np.int32)[lay_out(counts[used].tolist())]
        by_source = np.argsort(source, kind="stable")
        first = np.cumsum(counts) - counts
        before = np.empty(len(source), dtype=np.int64)
        before[by_source] = np.arange(len(source)) - np.repeat(first, counts)
        return cls(start, parts, source, before, counts, base)

    def entries(self, span: int) -> np.ndarray:
        """Entries of each source in the spans before `span`, which lies in or right after the phase."""
        periods, slot = divmod(span - self.start, len(self.source))
        return self.base + periods * self.counts + np.bincount(self.source[:slot], minlength=len(self.base))

    def draw(self, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, entry) of each span of the phase."""
        periods, slot = np.divmod(spans - self.start, len(self.source))
        source = self.source[slot]
        return source, self.base[source] + periods * self.counts[source] + self.before[slot]


class Mixture:
    """The sources of a stage over its spans.

    Args:
        phases: (first span, weights) of each phase, the first at 0, in rising order.

    Raises:
        InputError: more sources than `PARTS` in one phase.
    """

    def __init__(self, phases: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self.names = tuple(sorted({name for _, weights in phases for name in weights}))
        self.phases: list[Phase] = []
        base = np.zeros(len(self.names), dtype=np.int64)
        for start, weights in phases:
            if self.phases:
                base = self.phases[-1].entries(start)
            parts = quantise(weights)
            row = np.array([parts.get(name, 0) for name in self.names], dtype=np.int64)
            self.phases.append(Phase.begin(start, row, base))
        self._starts = np.array([phase.start for phase in self.phases])

    def draw(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of every span from `first` to before `last`: its source, int32, and which entry of it, int64.

        Entries of a source count from 0 over the whole stage: none is left out, none comes twice.
        """
        spans = np.arange(first, last)
        cuts = np.searchsorted(spans, self._starts[1:])
        pieces = [
            phase.draw(piece)
            for phase, piece in zip(self.phases, np.split(spans, cuts), strict=True)
            if len(piece)
        ]
        if not pieces:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
        return np.concatenate([source for source, _ in pieces]), np.concatenate(
            [entry for _, entry in pieces]
        )

    def entries(self, span: int) -> np.ndarray:
        """How many entries of each source, in the order of `names`, come before a span: int64 (sources,)."""
        number = int(np.searchsorted(self._starts, span, side="right")) - 1
        return self.phases[number].entries(span)

    def facts(self) -> list[list[object]]:
        """What the mixture is, as JSON: [first span, {source: parts}] of each phase."""
        return [
            [phase.start, {name: int(n) for name, n in zip(self.names, phase.parts, strict=True) if n}]
            for phase in self.phases
        ]
