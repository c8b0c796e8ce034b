"""Jobs on matrices, one matrix a thread.

A product of two matrices of a few hundred rows takes half a millisecond: with all threads on one of them,
each waits for the others at every product. Here each of as many workers as torch has threads takes whole
matrices and computes with one thread, so that nothing waits but the last.

Guarantees: results depend neither on the number of threads nor on the order in which jobs end.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of each item, in order, without gradients, in `torch.get_num_threads()` workers."""

    def quietly(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    count = torch.get_num_threads()
    if count == 1:
        return [quietly(item) for item in items]
    return list(_workers(count).map(quietly, items))


@functools.lru_cache(maxsize=1)
def _workers(count: int) -> ThreadPoolExecutor:
    """Workers that stay, each with one thread."""
    pool = ThreadPoolExecutor(count, "matrices", initializer=_alone)
    # All must have begun before the last line: torch keeps a number for each thread, but what one sets is
    # also what threads yet to come begin with.
    met = threading.Barrier(count)
    list(pool.map(lambda _: met.wait(), range(count)))
    torch.set_num_threads(count)
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    # A thread takes over the number of all at its first question for it; unasked here, it would be the one
    # that is set after this.
    torch.get_num_threads()


os.register_at_fork(after_in_child=_workers.cache_clear)  # a fork has the pool but not its threads
