"""When each pipeline rank does what, microbatch by microbatch: the picture of a schedule.

A stage passes a microbatch forward once the stage before it has, and backward once the stage after it has.
gpipe, 1f1b and interleaved take their passes in a fixed order (Narayanan et al. 2021). The zero-bubble
schedules split a backward pass into the gradient of its input, on which the stage before waits, and that of
its weights, on which nobody does and which fills what would be bubbles (Qi et al. 2023). The order of zb-h1
and zb-h2 is fixed as well. Of zb-v each rank takes whatever can begin first, gradients of inputs before
forward passes before those of weights, and holds no more microbatches than `layout.Layout.in_flight`; its
authors' order (Qi et al. 2024), found by search, leaves a little less idle.

Gradients' sums, the optimizer and sends are left out: this is a picture, `steptime` has the seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cupola.plan.layout import Layout

Kind = Literal["forward", "backward", "weights"]
SPLIT = ("zb-h1", "zb-h2", "zb-v")
PREFERRED: tuple[Kind, ...] = ("backward", "forward", "weights")


@dataclass(frozen=True)
class Passed:
    """One pass of a microbatch through one stage.

    Attributes:
        kind: forward; backward, of zero-bubble schedules for the input alone; weights: the rest of it.
        chunk: which of its rank's stages.
        start, end: seconds.
    """

    rank: int
    kind: Kind
    microbatch: int
    chunk: int
    start: float
    end: float


def timeline(layout: Layout, microbatches: int, ranks: Sequence[tuple[float, float]]) -> list[Passed]:
    """Every pass of a step, in the order in which they begin.

    Args:
        microbatches: of the step; of schedule interleaved a multiple of the pipeline's ranks.
        ranks: seconds of a microbatch forward and backward on each, all its stages together.
    """
    play = _Play(layout, microbatches, ranks)
    while (best := play.next()) is not None:
        play.take(best)
    return play.done


class _Play:
    """The ranks, each at its next pass."""

    def __init__(self, layout: Layout, microbatches: int, ranks: Sequence[tuple[float, float]]) -> None:
        self.layout, self.microbatches, self.ranks = layout, microbatches, ranks
        self.split, self.free_choice = layout.schedule in SPLIT, layout.schedule == "zb-v"
        self.chunks = layout.stage_count // layout.pipeline
        self.free = [0.0] * layout.pipeline
        self.ends: dict[tuple[Kind, int, int], float] = {}  # of a pass through a stage
        self.done: list[Passed] = []
        self.limits = [layout.in_flight(rank, microbatches) for rank in range(layout.pipeline)]
        # Of each rank and chunk, how many microbatches have passed in each way: each goes in order.
        self.counts: list[list[dict[Kind, int]]] = [
            [dict.fromkeys(PREFERRED, 0) for _ in range(self.chunks)] for _ in range(layout.pipeline)
        ]
        own = range(0 if self.free_choice else layout.pipeline)
        self.orders = [fixed(layout, rank, microbatches) for rank in own]

    def stage(self, rank: int, chunk: int) -> int:
        """Its number; zb-v comes back the way it went."""
        if self.layout.schedule == "zb-v" and chunk:
            return 2 * self.layout.pipeline - 1 - rank
        return chunk * self.layout.pipeline + rank

    def next(self) -> Passed | None:
        """Of all that can be next on any rank, what begins first."""
        found = [one for rank in range(self.layout.pipeline) for one in self._candidates(rank)]
        return min(found, key=lambda one: (one.start, PREFERRED.index(one.kind), -one.chunk), default=None)

    def take(self, one: Passed) -> None:
        """It is done."""
        self.done.append(one)
        self.free[one.rank] = one.end
        self.ends[one.kind, self.stage(one.rank, one.chunk), one.microbatch] = one.end
        self.counts[one.rank][one.chunk][one.kind] += 1
        if not self.free_choice:
            self.orders[one.rank].pop(0)

    def _candidates(self, rank: int) -> Iterator[Passed]:
        if not self.free_choice:
            ways: list[tuple[Kind, int, int]] = self.orders[rank][:1]
        else:
            ways = [
                (kind, chunk, counts[kind])
                for chunk, counts in enumerate(self.counts[rank])
                for kind in PREFERRED
                if counts[kind] < self.microbatches
                and (kind != "forward" or counts[kind] - counts["weights"] < self.limits[rank][chunk])
            ]
        for kind, chunk, microbatch in ways:
            ready = self._ready(kind, self.stage(rank, chunk), microbatch)
            if ready is not None:
                start = max(ready, self.free[rank])
                yield Passed(rank, kind, microbatch, chunk, start, start + self._takes(rank, kind))

    def _ready(self, kind: Kind, stage: int, microbatch: int) -> float | None:
        """When what it waits for is there; None: that isn't known yet."""
        if kind == "forward":
            return self.ends.get(("forward", stage - 1, microbatch)) if stage else 0.0
        if kind == "weights":
            return self.ends.get(("backward", stage, microbatch))
        if stage == self.layout.stage_count - 1:
            return self.ends.get(("forward", stage, microbatch))
        own = self.ends.get(("forward", stage, microbatch))
        after = self.ends.get(("backward", stage + 1, microbatch))
        return None if own is None or after is None else max(own, after)

    def _takes(self, rank: int, kind: Kind) -> float:
        forward, backward = self.ranks[rank]
        return (forward if kind == "forward" else backward / (1 + self.split)) / self.chunks


def fixed(layout: Layout, rank: int, microbatches: int) -> list[tuple[Kind, int, int]]:
    """(way, chunk, microbatch) of each pass of a rank, in order; of every schedule but zb-v.

    Forward passes run ahead of backward passes by `warm`; where these are split, gradients of weights come
    `late` microbatches behind those of inputs: the later the rank, the more it keeps for the end.
    """
    p, chunks = layout.pipeline, layout.chunks
    ahead, total = p - rank - 1, microbatches * chunks
    late = {"zb-h1": rank, "zb-h2": 2 * rank}.get(layout.schedule)
    warm = {
        "gpipe": total,
        "interleaved": 2 * ahead + (chunks - 1) * p,
        "zb-h2": 2 * ahead,
    }.get(layout.schedule, ahead)
    warm = min(total, warm)
    order: list[tuple[Kind, int, int]] = []
    for number in range(total + warm):
        if number < total:
            order.append(("forward", *_place(number, p, chunks)))
        if number >= warm:
            chunk, microbatch = _place(number - warm, p, chunks)
            order.append(("backward", chunks - 1 - chunk, microbatch))
            if late is not None and number - warm >= late:
                order.append(("weights", 0, number - warm - late))
    if late is not None:
        order += [("weights", 0, number) for number in range(max(0, total - late), total)]
    return order


def _place(number: int, pipeline: int, chunks: int) -> tuple[int, int]:
    """Chunk and microbatch of a rank's passes in one direction: as many microbatches as ranks through each
    chunk in turn."""
    if chunks == 1:
        return 0, number
    turn, within = divmod(number, pipeline * chunks)
    return within // pipeline, turn * pipeline + within % pipeline
