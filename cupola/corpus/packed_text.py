"""Text stores of another shape: rows of whole documents, and the long documents of a source by themselves.

    <cache>/stores/<hash of the store and row length>/train            `in_rows`
    <cache>/stores/<hash of the store and length>/{short,long}/train   `by_length`

Both read a text's store and not the text, so that nothing is encoded twice; held-out text is read as text,
and has no such store. Memory: some hundred bytes a document.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cupola import storage
from cupola.corpus.built import build_once
from cupola.corpus.encoding import check_store
from cupola.corpus.tokenizer import Tokenizer
from cupola.data.batch import LEARNT
from cupola.data.packing import fill, pack
from cupola.data.store import StoreWriter, TokenStore, stores_root
from cupola.display import Display, count
from cupola.recipe.rows import LONG

VERSION = 1
"""Raised whenever the same store would give another one."""
ROWS_AT_ONCE = 4096
TOKENS_AT_ONCE = 4_000_000
Items = Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
"""As `data.packing.fill` takes them."""


def write_rows(
    target: Path,
    tokenizer: Tokenizer,
    facts: dict[str, object],
    rows: list[list[int]],
    items: Items,
    length: int,
) -> None:
    """The store of rows that `pack` made of items.

    Raises:
        CupolaError: the disk is full.
    """
    with StoreWriter(target, tokenizer, facts, length) as writer:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            filled = fill(rows[first : first + ROWS_AT_ONCE], items, length, tokenizer.delimiter)
            text_bytes = int(tokenizer.text_bytes[filled.tokens[filled.learnt != 0]].sum())
            writer.append_rows(filled.tokens, filled.learnt, text_bytes)


class Chunks(Items):
    """The documents of a text store, those that are longer than a row in pieces of a row each.

    Every token is learnt, and the delimiter at a document's end; not the delimiter that ends a piece in the
    middle of a document, nor the first token of the piece after it, which does not follow that delimiter.
    """

    def __init__(self, store: TokenStore, row_length: int) -> None:
        self.store, self.piece = store, row_length - 1
        ends = np.append(store.document_starts, store.length)[1:] - 1
        lengths = ends - store.document_starts
        pieces = -(-lengths // self.piece)  # an empty document has none
        self.document = np.repeat(np.arange(store.documents), pieces)
        number = np.arange(len(self.document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.begins = store.document_starts[self.document] + number * self.piece
        self.ends = np.minimum(self.begins + self.piece, ends[self.document])
        self.first, self.last = number == 0, self.ends == ends[self.document]
        self.cut = int((pieces > 1).sum())
        """Documents that are cut."""

    def __len__(self) -> int:
        return len(self.document)

    def lengths(self) -> np.ndarray:
        """(pieces,) int64, with a delimiter after each."""
        lengths: np.ndarray = self.ends - self.begins + 1
        return lengths

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        """A piece's ids and what is learnt of them and of the delimiter after them."""
        ids = self.store.tokens[self.begins[place] : self.ends[place]]
        learnt = np.full(len(ids) + 1, LEARNT, dtype=np.uint8)
        learnt[0] *= self.first[place]
        learnt[-1] *= self.last[place]
        return ((ids, learnt),)


def in_rows(folder: Path, tokenizer: Tokenizer, row_length: int, display: Display, name: str) -> Path:
    """The training documents of a text's store, packed by best fit into rows of one length (Ding et al. 2024,
    "Fewer truncations improve language modeling").

    Args:
        folder: of stores, of which `train` is read.
        name: what the display calls it.

    Returns:
        The folder of the new store, `train`.

    Raises:
        CupolaError: the disk is full.
    """
    store = TokenStore(folder / "train", tokenizer)
    made_from = {"version": VERSION, "store": store.fingerprint, "row_length": row_length}
    target = stores_root() / storage.digest(made_from)[:32] / "train"

    def work() -> None:
        with display.task(f"pack {name}"):
            chunks = Chunks(store, row_length)
            rows = pack(chunks.lengths(), row_length)
            write_rows(target, tokenizer, {**store.source, "pieces": len(chunks)}, rows, chunks, row_length)
        filled = chunks.lengths().sum() / max(1, len(rows) * row_length)
        display.say(
            f"packed {count(store.documents)} documents of {name} into {count(len(rows))} rows of"
            f" {row_length} tokens: {filled:.1%} filled, {count(chunks.cut)} cut"
        )

    build_once(target, work, display, partial(check_store, target, tokenizer))
    return target.parent


def by_length(
    folder: Path, tokenizer: Tokenizer, over: int, row_length: int, display: Display, name: str
) -> dict[str, Path]:
    """The training documents of a text's store, those of at least `over` tokens by themselves.

    Args:
        folder: of stores, of which `train` is read.
        row_length: what is less than a row can't be read by itself.
        name: the source's.

    Returns:
        `name`, and `name.long` -> folder of a store `train`; `name` alone, of all documents, where there are
        less than a row of either.

    Raises:
        CupolaError: the disk is full.
    """
    store = TokenStore(folder / "train", tokenizer)
    lengths = np.diff(store.document_starts, append=store.length)
    is_long = lengths > over  # with its delimiter
    tokens = {"short": int(lengths[~is_long].sum()), "long": int(lengths[is_long].sum())}
    share = tokens["long"] / store.length
    said = f"{name}: {int(is_long.sum()):,} documents of at least {over:,} tokens, {share:.1%} of its text"
    if min(tokens.values()) < row_length:
        which = min(tokens, key=lambda kind: tokens[kind])
        display.warn(f"{said}; its {which} ones are less than one row, and no document is raised")
        return {name: folder}
    display.say(f"{said}")
    made_from = {"version": VERSION, "store": store.fingerprint, "over": over}
    root = stores_root() / storage.digest(made_from)[:32]
    for kind, chosen in (("short", ~is_long), ("long", is_long)):
        target = root / kind / "train"
        work = partial(_copy, store, np.flatnonzero(chosen), target, tokenizer)
        build_once(target, work, display, partial(check_store, target, tokenizer))
    return {name: root / "short", name + LONG: root / "long"}


def _copy(store: TokenStore, chosen: np.ndarray, target: Path, tokenizer: Tokenizer) -> None:
    with StoreWriter(target, tokenizer, store.source) as writer:
        for documents in _some(store, chosen):
            writer.append(documents, sum(int(tokenizer.text_bytes[ids].sum()) for ids in documents))


def _some(store: TokenStore, chosen: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Documents without their delimiters, some millions of tokens at a time."""
    batch: list[np.ndarray] = []
    tokens = 0
    for number in chosen.tolist():
        batch.append(store.document(number)[:-1])
        tokens += len(batch[-1])
        if tokens >= TOKENS_AT_ONCE:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
