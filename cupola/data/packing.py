"""Whole items into rows of one length: best fit, longest item first.

Guarantees: no item is cut or left out; the same lengths give the same rows. At most 11/9 of the fewest rows
there could be, and one more (Johnson 1973, "Near-optimal bin packing algorithms"); of conversations with many
short ones among them a percent or two stays empty.
Costs: a bisection an item. Memory of a few numbers an item.
"""

from bisect import bisect_left, insort

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
