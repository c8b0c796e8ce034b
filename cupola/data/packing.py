"""Whole items into rows of one length: best fit, longest item first.

Guarantees: no item is cut or left out; the same lengths give the same rows. At most 11/9 of the fewest rows
there could be, and one more (Johnson 1973, "Near-optimal bin packing algorithms"); of conversations with many
short ones among them a percent or two stays empty.
Costs: a bisection an item. Memory of a few numbers an item.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def pack(lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Items by row, each row's in the order in which they were put there.

    Args:
        lengths: (items,) integers, each from 1 to `row_length`.
        row_length: room in a row.

    Raises:
        ValueError: an item does not fit into a row.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= row_length:
        raise ValueError(f"items of {lengths.min()} to {lengths.max()} tokens, rows of {row_length}")
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    """The keys of `with_room`, sorted."""
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, row_length
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(item)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(row)
    return rows


class Filled(NamedTuple):
    """Rows with their items in place.

    Attributes:
        tokens: (rows, row_length) int64; a delimiter after each sequence and in what is left.
        learnt: (rows, row_length) uint8: what the items' masks say, 0 elsewhere.
        owners: (rows, row_length) int64: which sequence, in the order in which they were put there, has a
            token that is learnt; -1 of others.
    """

    tokens: np.ndarray
    learnt: np.ndarray
    owners: np.ndarray


def fill(
    rows: list[list[int]],
    items: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    row_length: int,
    delimiter: int,
) -> Filled:
    """The tokens of rows that `pack` made of items.

    Args:
        items: each of one or more sequences, with (tokens,) ids and a mask of what is learnt, bool or uint8:
            (tokens,), or (tokens + 1,) where it says so of the delimiter after them as well; an item's length
            is that of its sequences and a delimiter after each.
    """
    tokens = np.full((len(rows), row_length), delimiter, dtype=np.int64)
    learnt = np.zeros((len(rows), row_length), dtype=np.uint8)
    owners = np.full((len(rows), row_length), -1, dtype=np.int64)
    sequence = 0
    for number, row in enumerate(rows):
        place = 0
        for ids, mask in (part for index in row for part in items[index]):
            end = place + len(ids)
            tokens[number, place:end] = ids
            learnt[number, place : place + len(mask)] = mask
            owners[number, place : place + len(mask)][mask != 0] = sequence
            place, sequence = end + 1, sequence + 1
    return Filled(tokens, learnt, owners)
