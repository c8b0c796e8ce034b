"""The order of a stage's tokens: a pure function of (seed, stage, position).

A *position* is the number of the stage's tokens consumed so far. A *span* is as long as the stage's longest
row; a *window* is `SPANS_PER_WINDOW` spans. The g-th span of the stage is the k-th *entry* of some source
(`cupola.data.mixture`). A source of n whole spans gives, in its e-th epoch (e = k div n), the span
permutation(seed, stage, source, e)(k mod n) (`cupola.data.permutation`), cut from the source's tokens taken
as a ring whose beginning, origin(seed, stage, source, e), moves from epoch to epoch. Inside a window, rows
are taken column by column: row r is column r div SPANS_PER_WINDOW of span r mod SPANS_PER_WINDOW. Where a row
length does not divide the span, the last column is shorter: it is what is left.

Guarantees: the same arguments give the same rows on every machine. Batch size, number of workers,
microbatch and learning rate are no arguments at all; row lengths change how a window is cut into rows,
never which tokens it holds. An epoch reads n spans, none twice; what it leaves, less than a span, is
elsewhere in the next epoch. Row and targets need one token more than the row: the ring always has it.
Costs: nothing is stored or read; a few microseconds a span, in arrays.
Trade-off: a row may begin and end in mid-document, as everywhere in pre-training; in return every token
counts once and none is padding. Packed items are never cut: their store's rows are the spans, so its ring
always begins with its last delimiter.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from cupola.data import permutation
from cupola.data.mixture import PARTS, Mixture, quantise
from cupola.errors import InputError
from cupola.recipe.clock import SPANS_PER_WINDOW, Clock
from cupola.recipe.curve import Piecewise
from cupola.recipe.quantity import Quantity
from cupola.storage import digest

VERSION = 1
"""Of the arithmetic in this package: raised whenever a change gives any other row than before."""

EPOCHS_WORTHWHILE = 4
"""So often may a text be seen and be nearly as good as fresh text (Muennighoff et al. 2023, "Scaling
data-constrained language models")."""

_FIELDS = ["source", "entry", "epoch", "span", "offset"]

SPAN = np.dtype([(name, np.int64) for name in _FIELDS])
"""A span: index of its source in `Order.names`, k, e, number in the epoch's cut, and where it begins."""

ROW = np.dtype([(name, np.int64) for name in [*_FIELDS, "column", "length"]])
"""A row: of which span and column, its length in tokens; `offset` is where the row itself begins in the
source's tokens. It reads length + 1 tokens, on from the source's end to its beginning if need be."""


class Store(Protocol):
    """What the order and the loader need of a token store, such as `cupola.data.store.TokenStore`."""

    @property
    def tokens(self) -> np.ndarray:
        """Every document's tokens and then the delimiter, end to end: (length,), integers."""

    @property
    def length(self) -> int:
        """Number of tokens."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the tokens do."""

    @property
    def delimiter(self) -> int:
        """The token between documents."""

    @property
    def row_length(self) -> int | None:
        """Of packed items, the length of their rows."""

    @property
    def learnt(self) -> np.ndarray | None:
        """(length,): 0 where a token is not learnt, else what of it (`data.batch`); None where all are."""


class Order:
    """The order of one stage.

    Args:
        seed: the recipe's.
        stage: the stage's name.
        sources: tokens of each source; those that the mixture does not name play no part.
        clock: the stage's, for its span and the lengths of its rows.
        mixture: weights by source, at positions; a position counts from the next window on.
        fingerprints: of each source's store, so that `fingerprint` covers the contents as well.
        packed: of sources of packed items, the length of their rows.

    Raises:
        InputError: a source is missing or shorter than one span, or packed into rows of another length.
    """

    def __init__(
        self,
        seed: int,
        stage: str,
        sources: Mapping[str, int],
        clock: Clock,
        mixture: Piecewise[dict[str, float]],
        fingerprints: Mapping[str, str] | None = None,
        packed: Mapping[str, int] | None = None,
    ) -> None:
        self.seed, self.stage, self.clock = seed, stage, clock
        phases = list(_phases(mixture, clock))
        self._weights = dict(phases)  # of two changes in one window, the later one counts
        self._ignored = len(phases) - sum(1 for first in self._weights if first * clock.span < clock.end)
        self._mixture = Mixture(sorted(self._weights.items()))
        self.names = self._mixture.names
        """The sources, in the order of their index."""
        self._tokens = {name: _checked_length(stage, name, sources, clock.span) for name in self.names}
        self._spans = np.array([self._tokens[name] // clock.span for name in self.names], dtype=np.int64)
        self._fingerprints = dict(fingerprints or {})
        self._packed = dict(packed or {})
        assert clock.stage.sequence_length is not None
        for name, length in self._packed.items():
            if name in self.names and set(clock.stage.sequence_length.values) != {length}:
                raise InputError(
                    f"stage {stage!r}: {name!r} is packed into rows of {length:,} tokens, which other rows "
                    f"would cut; keep sequence_length at {length}"
                )

    @classmethod
    def over(
        cls,
        seed: int,
        stage: str,
        stores: Mapping[str, Store],
        clock: Clock,
        mixture: Piecewise[dict[str, float]],
    ) -> "Order":
        """The order of a stage over token stores: their lengths and fingerprints.

        Raises:
            InputError: as the constructor.
        """
        lengths = {name: store.length for name, store in stores.items()}
        fingerprints = {name: store.fingerprint for name, store in stores.items()}
        packed = {name: store.row_length for name, store in stores.items() if store.row_length is not None}
        return cls(seed, stage, lengths, clock, mixture, fingerprints, packed)

    def spans(self, first: int, last: int) -> np.ndarray:
        """The spans from `first` to before `last` of the stage, as an array of `SPAN`."""
        found = np.empty(max(0, last - first), dtype=SPAN)
        found["source"], found["entry"] = self._mixture.draw(first, last)
        found["epoch"], index = np.divmod(found["entry"], self._spans[found["source"]])
        cuts, inverse = np.unique(found["epoch"] * len(self.names) + found["source"], return_inverse=True)
        keys = np.empty((len(cuts), permutation.ROUNDS), dtype=np.uint64)
        origins, tokens = np.empty((2, len(cuts)), dtype=np.int64)
        for number, cut in enumerate(cuts.tolist()):
            epoch, source = divmod(cut, len(self.names))
            name = self.names[source]
            tokens[number] = self._tokens[name]
            keys[number] = permutation.keys(self.seed, self.stage, name, epoch)
            origins[number] = (
                self._tokens[name] - 1
                if name in self._packed
                else permutation.origin(self.seed, self.stage, name, epoch, self._tokens[name])
            )
        found["span"] = permutation.permute(index, self._spans[found["source"]], keys[inverse])
        found["offset"] = (origins[inverse] + found["span"] * self.clock.span) % tokens[inverse]
        return found

    def rows(self, start: int, end: int) -> np.ndarray:
        """The rows from one position to another, as an array of `ROW`.

        Where the row length changes on the way, rows of equal length still stand together.

        Raises:
            InputError: a position is not the boundary of a row.
        """
        pieces = [self._rows(*stretch) for stretch in self._stretches(start, end)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=ROW)

    def _stretches(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, row length) of every stretch of one row length."""
        window = self.clock.window
        length = self.clock.sequence_length(start)
        for boundary in range((start // window + 1) * window, end, window):
            following = self.clock.sequence_length(boundary)
            if following != length:
                yield start, boundary, length
                start, length = boundary, following
        if start < end:
            yield start, end, length

    def _rows(self, start: int, end: int, length: int) -> np.ndarray:
        """The rows of a stretch; `length` is that of all columns but, where it does not divide the span, the
        last."""
        clock = self.clock
        if not (clock.begins_row(start) and clock.begins_row(end)):
            raise InputError(
                f"stage {self.stage!r}: rows are {length:,} tokens long there, so {start:,} to {end:,} is "
                f"not whole rows; keep the sequence_length that the stage began with"
            )
        columns, last = clock.rows_of(length)
        per_window = columns * SPANS_PER_WINDOW
        first, final = start // clock.window, end // clock.window
        end_row = final * per_window + (clock.row_at(end) if end % clock.window else 0)
        window, place = np.divmod(np.arange(first * per_window + clock.row_at(start), end_row), per_window)
        column, span = np.divmod(place, SPANS_PER_WINDOW)
        spans = self.spans(first * SPANS_PER_WINDOW, (int(window[-1]) + 1) * SPANS_PER_WINDOW)
        chosen = spans[(window - first) * SPANS_PER_WINDOW + span]
        rows = np.empty(len(chosen), dtype=ROW)
        rows[_FIELDS] = chosen
        rows["column"], rows["length"] = column, np.where(column < columns - 1, length, last)
        tokens = np.array([self._tokens[name] for name in self.names], dtype=np.int64)
        rows["offset"] = (chosen["offset"] + column * length) % tokens[chosen["source"]]
        return rows

    def epochs_of(self, position: int) -> dict[str, float]:
        """How many times each source has been seen at a position, to within a window."""
        entries = self._mixture.entries(-(-position // self.clock.span))
        return {name: float(k / n) for name, k, n in zip(self.names, entries, self._spans, strict=True)}

    def warnings(self) -> list[str]:
        """What a person should be warned of before the stage starts: sources seen too often."""
        return [
            f"{text}; up to {EPOCHS_WORTHWHILE} are nearly as good as fresh text (Muennighoff et al. 2023), "
            "more add less and less: add text, or let the stage be shorter"
            for text, seen in self._repeated()
            if seen > EPOCHS_WORTHWHILE
        ]

    def notes(self) -> list[str]:
        """What a person should hear before the stage starts, beside `warnings`: sources seen more than once,
        raised and ineffective weights."""
        found = [text for text, seen in self._repeated() if seen <= EPOCHS_WORTHWHILE]
        for weights in self._weights.values():
            whole = math.fsum(weights.values())
            low = sorted(name for name, weight in weights.items() if weight / whole < 1 / PARTS)
            if low:
                found.append(
                    f"stage {self.stage!r} takes 1/{PARTS} of its tokens, the least there is, from each of "
                    f"{', '.join(map(repr, low))}, whose weights are below that"
                )
        if self._ignored:
            found.append(
                f"stage {self.stage!r}: {self._ignored} of the weights in data have no effect: weights "
                f"change between windows of {self.clock.window:,} tokens, and the next change or the end "
                f"comes first"
            )
        return found

    def _repeated(self) -> Iterator[tuple[str, float]]:
        """A line for each source that is seen more than once, and its number of epochs."""
        for name, seen in self.epochs_of(self.clock.end).items():
            if seen > 1:
                asked = seen * self._spans[self.names.index(name)] * self.clock.span
                text = (
                    f"stage {self.stage!r} asks for {asked:,.0f} tokens of {name!r}, "
                    f"which has {self._tokens[name]:,}: {seen:.3g} epochs"
                )
                yield text, seen

    def facts(self) -> dict[str, Any]:
        """Everything that the order depends on, as JSON.

        Not among it: batch size, workers, microbatch, learning rate, and the row lengths but the longest.
        """
        return {
            "version": VERSION,
            "seed": self.seed,
            "stage": self.stage,
            "span": self.clock.span,
            "spans_per_window": SPANS_PER_WINDOW,
            "sources": {
                name: {"tokens": self._tokens[name], "store": self._fingerprints.get(name)}
                for name in self.names
            },
            "mixture": self._mixture.facts(),
        }

    def fingerprint(self) -> str:
        """SHA-256 (hex) of `facts`: equal fingerprints, equal tokens at every position."""
        return digest(self.facts())

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint keeps of the order, as JSON: the position, and what to hold it against."""
        length = self.clock.sequence_length(position)
        return {"position": position, "row_length": length, "fingerprint": self.fingerprint(), **self.facts()}

    def verify_state(self, state: Mapping[str, Any]) -> None:
        """Hold this order against the state in a checkpoint before going on from it.

        Raises:
            InputError: other tokens would follow than the checkpoint was heading for; says what has changed.
        """
        position = state["position"]
        lengths = (
            f"{state['row_length']:,} -> {self.clock.sequence_length(position):,} at {position:,} tokens"
        )
        where = f"the checkpoint of stage {self.stage!r} does not go with this data order"
        if not self.clock.begins_row(position):
            raise InputError(
                f"{where}: sequence_length {lengths} puts the position inside a row; restore sequence_length"
            )
        changes = _differences(state, self.facts())
        if position % self.clock.window and state["row_length"] != self.clock.sequence_length(position):
            changes.append(f"sequence_length {lengths}, in the middle of a window")
        if changes:
            raise InputError(f"{where}: {'; '.join(changes)}; restore what changed")


def epoch_tokens(
    lengths: Mapping[str, int], mixture: Piecewise[dict[str, float]] | Mapping[str, float], span: int = 1
) -> int:
    """Tokens of a stage until the first source has been seen once, to a span: an epoch of the mixture.

    Where weights change at percentages, the horizon is not known yet and their mean over the stage counts.

    Args:
        lengths: tokens of each source.
        mixture: weights by source, or such weights at positions.
        span: the stage's longest row: what an epoch leaves of each source is not counted.

    Raises:
        InputError: a source is missing or shorter than a span.
    """
    if not isinstance(mixture, Piecewise):
        mixture = Piecewise(((Quantity(0, "%"), dict(mixture)),))
    names = sorted({name for weights in mixture.values for name in weights})
    left: dict[str, float] = {n: _checked_length(None, n, lengths, span) // span * span for n in names}
    starts = [start.amount for start, _ in mixture.steps]
    shares = [{name: part / PARTS for name, part in quantise(weights).items()} for weights in mixture.values]
    if mixture.steps[-1][0].unit == "%":
        mean = dict.fromkeys(names, 0.0)
        for start, end, share in zip(starts, [*starts[1:], 100], shares, strict=True):
            for name, part in share.items():
                mean[name] += part * (end - start) / 100
        starts, shares = [0], [mean]
    for start, end, share in zip(starts, [*starts[1:], math.inf], shares, strict=True):
        until = start + min(left[name] / part for name, part in share.items())
        if until <= end:
            break
        for name, part in share.items():
            left[name] -= part * (end - start)
    return round(until / span) * span


def _phases(mixture: Piecewise[dict[str, float]], clock: Clock) -> Iterator[tuple[int, dict[str, float]]]:
    """(first span, weights) of each phase, on the grid of windows."""
    for start, weights in mixture.starts(clock.total):
        yield -(-start // clock.window) * SPANS_PER_WINDOW, weights


def _checked_length(stage: str | None, name: str, lengths: Mapping[str, int], span: int) -> int:
    """Tokens of a source that has at least one span."""
    where = f"stage {stage!r}" if stage else "the stage"
    if name not in lengths:
        known = ", ".join(map(repr, sorted(lengths))) or "none"
        raise InputError(f"{where} takes data from {name!r}, which is not a source; sources are {known}")
    if lengths[name] < span:
        raise InputError(
            f"source {name!r} has {lengths[name]:,} tokens, less than one span of {span:,} (the longest row "
            f"of {where}); give it more text, shorten sequence_length, or leave it out of the stage's data"
        )
    return int(lengths[name])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs in the facts of two orders, for people."""
    found = [
        f"{key} {old.get(key)} -> {new[key]}"
        for key in ("version", "seed", "stage", "span", "spans_per_window")
        if old.get(key) != new[key]
    ]
    was, now = old.get("sources", {}), new["sources"]
    found += [f"source {name!r} is gone" for name in sorted(was.keys() - now.keys())]
    found += [f"source {name!r} is new" for name in sorted(now.keys() - was.keys())]
    for name in sorted(was.keys() & now.keys()):
        if was[name]["tokens"] != now[name]["tokens"]:
            found.append(
                f"source {name!r} had {was[name]['tokens']:,} tokens and has {now[name]['tokens']:,}"
            )
        elif was[name]["store"] != now[name]["store"]:
            found.append(f"the store of source {name!r} has other contents")
    if old.get("mixture") != new["mixture"]:
        found.append("the weights of the mixture, or where they change")
    return found
