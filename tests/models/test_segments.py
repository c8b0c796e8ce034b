"""Segments against a plain loop over tokens."""

import torch

from cupola.models.segments import Segments

NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3], [5, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5]])


def _same_document(row: list[int], i: int, j: int) -> bool:
    low, high = min(i, j), max(i, j)
    return all(row[k] == row[low] for k in range(low, high + 1))


def test_reaches_is_what_a_loop_finds() -> None:
    segments = Segments(NUMBERS)
    for back in range(4):
        found = segments.reaches(back)
        assert found is not None
        assert found.shape == (2, 11, 1)
        for b, row in enumerate(NUMBERS.tolist()):
            for t in range(11):
                assert bool(found[b, t, 0]) == (t >= back and _same_document(row, t - back, t))


def test_chunks_are_what_a_loop_finds() -> None:
    size = 4
    chunks = Segments(NUMBERS).chunks(size)
    assert chunks is not None
    for b, row in enumerate(NUMBERS.tolist()):
        padded = row + [row[-1]] * (-len(row) % size)
        for n in range(len(padded) // size):
            base = n * size
            for i in range(size):
                entering = _same_document(padded, max(base - 1, 0), base + i)
                assert bool(chunks.seen[b, n, i]) == entering
                assert bool(chunks.contributed[b, n, i]) == _same_document(padded, base + i, base + size - 1)
                for j in range(size):
                    assert bool(chunks.same[b, n, i, j]) == _same_document(padded, base + i, base + j)
            assert bool(chunks.survives[b, n]) == _same_document(padded, max(base - 1, 0), base + size - 1)


def test_rows_of_one_document_mask_nothing() -> None:
    assert Segments(None).chunks(4) is None
    assert Segments(None).reaches(1) is None
