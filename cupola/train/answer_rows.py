"""Questions and the answers to them as rows to read: packed, the very tokens that were sampled."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cupola.data.batch import Microbatch
from cupola.data.packing import fill, pack

Said = tuple[np.ndarray, Sequence[int]]
"""(the question's tokens with the delimiter before them, the answer's), which is what is learnt of it."""


def answer_rows(
    said: Sequence[Said],
    figures: Mapping[str, Sequence[Sequence[float]]],
    row_length: int,
    microbatch_tokens: int,
    delimiter: int,
) -> Iterator[tuple[list[int], Microbatch]]:
    """Microbatches with all of them, each once, a delimiter before and after it.

    Args:
        figures: name -> for each answer a number for each of its tokens.
        row_length: tokens of a row, enough for the longest.
        microbatch_tokens: as of `data.Loader`.

    Yields:
        Which answers a microbatch holds, in the order of its sequences, and the microbatch.
    """
    items = [[_sequence(*one)] for one in said]
    lengths = np.array([row_of(one) for one in said], dtype=np.int64)
    rows = pack(lengths, row_length)
    at_once = max(1, microbatch_tokens // row_length)
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        filled = fill(some, items, row_length, delimiter)
        order = [index for row in some for index in row]
        opened = np.full((len(some), 1), delimiter)
        learnt = np.concatenate([np.zeros((len(some), 1), dtype=bool), filled.learnt], axis=1)
        here = filled.owners >= 0
        placed = {name: np.zeros(here.shape, dtype=np.float32) for name in figures}
        for name, values in figures.items():
            placed[name][here] = [value for index in order for value in values[index]]
        tokens = np.concatenate([opened, filled.tokens], axis=1)
        sources = np.zeros(len(some), dtype=np.int64)
        yield order, Microbatch.of_rows(tokens, delimiter, sources, learnt, placed)


def row_of(said: Said) -> int:
    """Tokens of the shortest row that holds an answer and its question."""
    question, answer = said
    return len(question) + len(answer)


def _sequence(question: np.ndarray, answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Question and answer without the delimiter before them, and what of it is learnt."""
    ids = np.concatenate([question[1:], np.array(answer, dtype=np.int64)])
    return ids, np.arange(len(ids)) >= len(question) - 1
