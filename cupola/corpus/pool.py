"""Reading portions in several processes, results in order, memory bounded.

Guarantees: results come in the order of the portions whatever the number of processes; at most a few
portions per process are under way; when the caller stops asking, nothing more is read; the processes end
with the one that started them, also when that one is killed; Ctrl-C is that one's to handle, from their
first instruction on. Processes are spawned, not forked, so they are safe beside threads; that costs about
half a second, and a small amount of work is done in this process instead.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

from cupola.corpus.reading import Portion, Reading, Rules, read_portion
from cupola.errors import CupolaError
from cupola.machine import usable_cores

SMALL_WORK_BYTES = 3_000_000
MOST_PROCESSES = 16
UNDER_WAY = 3
"""Portions for each process that are read or waiting for the collector."""


def processes_for(cost: int | None) -> int:
    """How many processes read this much (bytes; None: unknown); 1 means this one."""
    if cost is not None and cost < SMALL_WORK_BYTES:
        return 1
    return min(usable_cores(), MOST_PROCESSES)


def read_in_order(portions: Iterator[Portion], rules: Rules, processes: int) -> Iterator[Reading]:
    """The readings of the portions, in their order.

    Raises:
        CupolaError: a process was killed (mostly by the system, for want of memory).
    """
    if processes == 1:
        for portion in portions:
            yield read_portion(portion, rules)
        return
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which, started later, would undo the mask
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare_process)
    try:
        waiting: deque[Future[Reading]] = deque()
        for portion in portions:
            with _interrupts_held():  # a submission may start a process, which inherits the mask
                waiting.append(pool.submit(read_portion, portion, rules))
            if len(waiting) >= UNDER_WAY * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise CupolaError("a process that read text was killed; was there enough memory?") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits in this thread, and never reaches a process started inside: the first process ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_process() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: "multiprocessing.process.BaseProcess") -> None:
    with contextlib.suppress(Exception):
        parent.join()
    os._exit(1)
