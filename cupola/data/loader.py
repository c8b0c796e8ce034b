"""Batches from a position on, read ahead of the loop by one thread.

Guarantees: the batches depend on the order and the position alone; rank r of R gets rows r, r + R, ... of
each batch, so that any number of ranks trains on the same batches; every rank gets as many microbatches of
the same shapes (where the rows don't divide, a filler row whose targets are ignored), so that no rank waits
for another. An error while reading reaches the loop as its own. A closed loader leaves no thread behind.
Costs: `bench/loader.py` measures it; some ten nanoseconds a token, in the other thread. Memory of
`prefetch` + 1 batches, 20 bytes a token.
Trade-off: one thread and no processes: nothing to fork, to pickle, or to leave behind; it can't tokenize on
the way, which is why tokens are stored.
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cupola.data.batch import FILLER, Batch, Microbatch
from cupola.data.order import ROW, Order, Store
from cupola.errors import CupolaError, InputError

Figures = Mapping[str, Mapping[str, np.ndarray]]
"""Name -> source -> (tokens of its store,) fp32."""


class Loader(Iterator[Batch]):
    """An iterator of the stage's batches from a position to its end; also a context manager.

    Args:
        order: the stage's order; its clock says where batches end.
        stores: the sources' tokens, by name.
        position: where the first batch begins: 0, or a position at which a batch ended.
        microbatch_tokens: a microbatch is as many rows as this holds, at least one.
        rank: this worker's number among the data-parallel workers.
        ranks: how many there are.
        prefetch: batches read ahead, at least 1.
        figures: name -> source -> (tokens of its store,) fp32, for `Answers.figures`.

    Raises:
        InputError: a store is missing, is not the one that the order was made for, or was made with another
            tokenizer than the others; the position is outside the stage.
    """

    def __init__(
        self,
        order: Order,
        stores: Mapping[str, Store],
        position: int = 0,
        *,
        microbatch_tokens: int,
        rank: int = 0,
        ranks: int = 1,
        prefetch: int = 2,
        figures: Figures | None = None,
    ) -> None:
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}")
        if not 0 <= position <= order.clock.end:
            raise InputError(
                f"stage {order.stage!r}: position {position:,} is beyond its end, {order.clock.end:,}"
            )
        self.order = order
        self.position = position
        """Where the batch begins that comes next."""
        reader = Reader(order, stores, microbatch_tokens, rank, ranks, figures)
        batches = (reader.batch(start, end) for start, end in order.clock.steps(position))
        self._channel = _Channel(prefetch)
        # The thread knows the channel and the reader, not the loader, so that a forgotten loader is closed
        # when it is collected.
        self._thread = threading.Thread(
            target=_fill, args=(self._channel, batches), name=f"loader of {order.stage}", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._channel.close)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            CupolaError: reading it failed.
        """
        try:
            batch = self._channel.take()
        except StopIteration:
            raise
        except CupolaError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise CupolaError(
                f"stage {self.order.stage!r}: reading the batch at position {self.position:,} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.position = batch.end
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and wait for the thread, which ends after the batch in hand at the latest."""
        self._finalizer()
        self._thread.join()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position of the batch that comes next, and the order's facts."""
        return self.order.state(self.position)


class Reader:
    """Makes any batch of one rank's share; holds nothing that moves. Arguments as of `Loader`."""

    def __init__(
        self,
        order: Order,
        stores: Mapping[str, Store],
        microbatch_tokens: int,
        rank: int,
        ranks: int,
        figures: Figures | None = None,
    ) -> None:
        chosen = {name: _matching(order, name, stores) for name in order.names}
        delimiters = {name: store.delimiter for name, store in chosen.items()}
        if len(set(delimiters.values())) > 1:
            listed = ", ".join(f"{name!r} {delimiter}" for name, delimiter in delimiters.items())
            raise InputError(
                f"stage {order.stage!r}: the stores were made with different tokenizers (delimiter of "
                f"{listed}); make them all with one"
            )
        self.order, self.microbatch_tokens, self.rank, self.ranks = order, microbatch_tokens, rank, ranks
        # Plain arrays over the same memory: indexing an np.memmap costs microseconds more.
        self.streams = [np.asarray(store.tokens) for store in chosen.values()]
        self.learnt = [None if s.learnt is None else np.asarray(s.learnt) for s in chosen.values()]
        self.figures = {
            name: [by_source[source] for source in order.names] for name, by_source in (figures or {}).items()
        }
        self.delimiter = next(iter(delimiters.values()))

    def batch(self, start: int, end: int) -> Batch:
        """The batch from one position to another."""
        rows = self.order.rows(start, end)
        by_source = np.bincount(rows["source"], weights=rows["length"], minlength=len(self.order.names))
        cuts = np.flatnonzero(np.diff(rows["length"])) + 1
        valid, sequences = self._counts(rows)
        return Batch(
            start=start,
            end=end,
            microbatches=[m for group in np.split(rows, cuts) for m in self._microbatches(group)],
            tokens_by_source={n: int(t) for n, t in zip(self.order.names, by_source, strict=True)},
            valid_tokens=valid,
            sequences=sequences,
        )

    def _counts(self, rows: np.ndarray) -> tuple[int, int]:
        """Targets that count in rows, whoever's they are, and sequences with some."""
        valid, sequences = int(rows["length"].sum()), 0
        for source, learnt in enumerate(self.learnt):
            mine = rows[rows["source"] == source]
            if learnt is not None and len(mine):  # packed: all of one length
                width = int(mine["length"][0]) + 1
                counts = ring_rows(learnt, mine["offset"], width)[:, 1:] != 0
                valid -= int((~counts).sum())
                opens = ring_rows(self.streams[source], mine["offset"], width)[:, :-1] == self.delimiter
                # As numbers that grow over all rows: each row begins with a delimiter.
                sequences += len(np.unique(opens.ravel().cumsum()[counts.ravel()]))
        return valid, sequences

    def _microbatches(self, rows: np.ndarray) -> Iterator[Microbatch]:
        """This rank's share of rows of one length."""
        share = rows[self.rank :: self.ranks]
        if len(share) < -(-len(rows) // self.ranks):
            filler = np.zeros(1, dtype=ROW)
            filler["source"], filler["length"] = FILLER, rows["length"][0]
            share = np.concatenate([share, filler])
        size = max(1, self.microbatch_tokens // int(rows["length"][0]))
        for first in range(0, len(share), size):
            yield self._read(share[first : first + size])

    def _read(self, rows: np.ndarray) -> Microbatch:
        width = int(rows["length"][0]) + 1
        tokens = np.full((len(rows), width), self.delimiter, dtype=np.int32)
        learnt, figures = None, {}
        if any(mask is not None for mask in self.learnt):
            learnt = np.ones((len(rows), width), dtype=np.uint8)
        for source, stream in enumerate(self.streams):
            mine = np.flatnonzero(rows["source"] == source)
            offsets = rows["offset"][mine]
            tokens[mine] = ring_rows(stream, offsets, width)
            mask = self.learnt[source]
            if learnt is not None and mask is not None:
                learnt[mine] = ring_rows(mask, offsets, width)
        for name, by_source in self.figures.items():
            figures[name] = np.zeros((len(rows), width - 1), dtype=np.float32)
            for source, figure in enumerate(by_source):
                mine = np.flatnonzero(rows["source"] == source)
                figures[name][mine] = ring_rows(figure, rows["offset"][mine], width)[:, 1:]
        return Microbatch.of_rows(tokens, self.delimiter, rows["source"].copy(), learnt, figures)


def packed_rows(
    store: Store, first: int, last: int, figures: Mapping[str, np.ndarray] | None = None
) -> Microbatch:
    """Rows `first` to before `last` of a store of packed items, each with the delimiter before it, as
    training reads them.

    Args:
        figures: (tokens of the store,) fp32 each, for `Answers.figures`.
    """
    length = store.row_length
    assert length is not None
    assert store.learnt is not None
    offsets = (np.arange(first, last) * length - 1) % store.length
    tokens, learnt = (ring_rows(stream, offsets, length + 1) for stream in (store.tokens, store.learnt))
    cut = {name: ring_rows(figure, offsets, length + 1)[:, 1:] for name, figure in (figures or {}).items()}
    return Microbatch.of_rows(tokens.astype(np.int64), store.delimiter, learnt=learnt, figures=cut)


def ring_rows(stream: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """(rows, width) entries of a ring, from each offset on."""
    found = np.empty((len(offsets), width), dtype=stream.dtype)
    whole = offsets + width <= len(stream)
    if whole.any():
        windows = np.lib.stride_tricks.sliding_window_view(stream, width)
        found[whole] = windows[offsets[whole]]
    for row in np.flatnonzero(~whole):
        found[row] = stream.take(np.arange(offsets[row], offsets[row] + width), mode="wrap")
    return found


def _matching(order: Order, name: str, stores: Mapping[str, Store]) -> Store:
    """The store of a source, if it is the one that the order was made for."""
    if name not in stores:
        raise InputError(f"stage {order.stage!r}: source {name!r} has no token store")
    facts = order.facts()["sources"][name]
    store = stores[name]
    found = len(store.tokens)
    if found != facts["tokens"] or facts["store"] not in (None, store.fingerprint):
        raise InputError(
            f"stage {order.stage!r}: the store of {name!r} is not the one that the order was made for "
            f"({found:,} tokens, {facts['tokens']:,} expected); make the order from the stores in use"
        )
    return store


class _Channel:
    """A short queue from one thread to another that both sides can end at once."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self.batches: deque[Batch] = deque()
        self.changed = threading.Condition()
        self.ended = self.closed = False
        self.error: Exception | None = None

    def put(self, batch: Batch) -> bool:
        """Wait for room and add a batch; False if nobody wants more."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.batches) < self.size)
            if not self.closed:
                self.batches.append(batch)
                self.changed.notify_all()
            return not self.closed

    def end(self, error: Exception | None = None) -> None:
        """No more batches come, for the reason given if any."""
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def take(self) -> Batch:
        """Wait for a batch; raises the other side's error, once what came before it has been taken."""
        with self.changed:
            self.changed.wait_for(lambda: self.batches or self.ended or self.closed)
            if self.batches:
                self.changed.notify_all()
                return self.batches.popleft()
            if self.error is not None and not self.closed:
                raise self.error
            raise StopIteration

    def close(self) -> None:
        """Nobody wants more batches."""
        with self.changed:
            self.closed = True
            self.batches.clear()
            self.changed.notify_all()


def _fill(channel: _Channel, batches: Iterator[Batch]) -> None:
    """The thread: read until the stage ends, reading fails, or nobody wants more."""
    try:
        for batch in batches:
            if not channel.put(batch):
                return
    except Exception as error:
        channel.end(error)
    else:
        channel.end()
