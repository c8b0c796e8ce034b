"""The data order once more, a row at a time in plain loops from its definition; and small stages."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cupola.data import permutation
from cupola.data.mixture import lay_out, quantise
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Stage

WINDOW = 16  # spans


def small_stage(**settings: Any) -> Stage:
    """A stage of 20,000 tokens; settings as in a recipe."""
    base = {
        "data": {"a": 0.6, "b": 0.3, "c": 0.1},
        "tokens": 20_000,
        "sequence_length": 32,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
    }
    return Stage.model_validate({**base, **settings})


@dataclass
class ArrayStore:
    """Tokens in memory as a store: every token is its own place, so that a row shows where it was read."""

    tokens: np.ndarray
    delimiter: int = 0
    fingerprint: str = "made in a test"
    row_length: int | None = None
    learnt: np.ndarray | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)


def small_stores() -> dict[str, ArrayStore]:
    """Three sources with no round lengths; tokens of source i are i * 10,000 + place."""
    lengths = {"a": 4_001, "b": 1_777, "c": 99}
    return {
        name: ArrayStore((np.arange(length) + 10_000 * number).astype(np.int32), delimiter=-5)
        for number, (name, length) in enumerate(lengths.items())
    }


def slow_sources(stage: Stage, clock: Clock, spans: int) -> list[tuple[str, int]]:
    """(source, entry) of each span, counted one after the other."""
    found: list[tuple[str, int]] = []
    seen: dict[str, int] = {}
    phases = []
    for start, weights in stage.data.starts(clock.total):
        span = 0
        while span * clock.span < start:
            span += WINDOW
        phases.append((span, weights))
    for number, (first, weights) in enumerate(phases):
        last = phases[number + 1][0] if number + 1 < len(phases) else spans
        names = sorted(weights)
        parts = quantise(weights)
        shrink = np.gcd.reduce(list(parts.values()))
        table = lay_out([parts[name] // int(shrink) for name in names])
        for span in range(first, min(last, spans)):
            name = names[table[(span - first) % len(table)]]
            found.append((name, seen.get(name, 0)))
            seen[name] = seen.get(name, 0) + 1
    return found


def slow_rows(
    seed: int, name: str, stage: Stage, clock: Clock, lengths: dict[str, int]
) -> list[tuple[int, str, int, int, int, int, int, int]]:
    """(position, source, entry, epoch, span, column, length, offset) of every row of the stage."""
    spans = -(-clock.end // clock.window) * WINDOW
    sources = slow_sources(stage, clock, spans)
    found = []
    position = 0
    rows = [
        (window, column, number, min(clock.sequence_length(window * clock.window), left))
        for window in range(spans // WINDOW)
        for column, left in enumerate(range(clock.span, 0, -clock.sequence_length(window * clock.window)))
        for number in range(WINDOW)
    ]
    for window, column, number, length in rows:
        if position >= clock.end:
            break
        source, entry = sources[window * WINDOW + number]
        size = lengths[source] // clock.span
        epoch = entry // size
        keys = permutation.keys(seed, name, source, epoch)[None]
        span = int(permutation.permute(np.array([entry % size]), np.array([size]), keys)[0])
        full = clock.sequence_length(window * clock.window)
        origin = permutation.origin(seed, name, source, epoch, lengths[source])
        offset = (origin + span * clock.span + column * full) % lengths[source]
        found.append((position, source, entry, epoch, span, column, length, offset))
        position += length
    return found


def tokens_of_row(store: ArrayStore, offset: int, count: int) -> list[int]:
    """`count` tokens from an offset on, one by one, around the ring."""
    return [int(store.tokens[(offset + step) % store.length]) for step in range(count)]
