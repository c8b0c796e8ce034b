"""From gathered text to token stores: one for each split, built once for each text and tokenizer.

    <cache>/stores/<hash of text and tokenizer>/train     a `cupola.data.store`
                                               /heldout

Encoding runs in threads, a few megabytes of text ahead of the writer, so memory does not grow with the
source. Each split appears whole or not at all: a killed run leaves nothing that is taken for a store, and
the next one goes on with the split that is missing.
"""

import functools
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cupola import storage
from cupola.corpus.built import build_once
from cupola.corpus.documents import Split, documents, totals
from cupola.corpus.tokenizer import CHUNK_CHARACTERS, Tokenizer
from cupola.data.store import StoreWriter, TokenStore, stores_root
from cupola.display import Display, count, size

SPLITS: tuple[Split, ...] = ("train", "heldout")
VERSION = 1
"""Raised whenever the same text and tokenizer would give another store."""


def encode_source(
    gathered: Path, tokenizer: Tokenizer, display: Display | None = None, name: str = "text"
) -> Path:
    """Encode a gathered source and return the folder of its stores, `train` and `heldout`.

    Args:
        gathered: folder of `cupola.corpus.documents`.
        name: what the display calls it.

    Raises:
        CupolaError: the text can't be read, the disk is full.
    """
    display = display or Display()
    files = storage.read_manifest(gathered)["files"]
    texts = {split: files[f"{split}.parquet"]["sha256"] for split in SPLITS}
    made_from = {"version": VERSION, "texts": texts, "tokenizer": tokenizer.fingerprint}
    folder = stores_root() / storage.digest(made_from)[:32]
    for split in SPLITS:
        target = folder / split
        build_once(
            target,
            partial(_encode_split, gathered, split, target, tokenizer, display, name),
            display,
            partial(check_store, target, tokenizer),
        )
    return folder


def check_store(target: Path, tokenizer: Tokenizer) -> None:
    """Raises CupolaError or InputError where a store in the cache is not whole, or another tokenizer's."""
    TokenStore(target, tokenizer)
    _verified(target)


@functools.cache
def _verified(target: Path) -> None:
    """Every byte is compared once a process (about 1 GB/s); a failure isn't remembered."""
    storage.verify(target)


def _encode_split(
    gathered: Path, split: Split, target: Path, tokenizer: Tokenizer, display: Display, name: str
) -> None:
    _, total = totals(gathered, split)
    sizes: deque[int] = deque()
    begun = time.monotonic()
    title = f"encode {name}" if split == "train" else f"encode {name}, held out"
    facts = {"text": gathered.name, "split": split}
    with (
        display.task(title, total, "bytes") as task,
        StoreWriter(target, tokenizer, facts) as writer,
    ):
        for ids in tokenizer.encode_stream(_batches(gathered, split, sizes)):
            text_bytes = sizes.popleft()
            writer.append(ids, text_bytes)
            task.advance(text_bytes)
    seconds = max(time.monotonic() - begun, 1e-9)
    if writer.documents:
        text_tokens = max(1, writer.tokens - writer.documents)
        display.say(
            f"encoded {count(writer.documents)} documents, {size(writer.bytes)},"
            f" {count(writer.tokens)} tokens: {writer.bytes / text_tokens:.2f} bytes per token,"
            f" {size(writer.bytes / seconds)}/s"
        )


def _batches(gathered: Path, split: Split, sizes: deque[int]) -> Iterator[list[str]]:
    """Texts in batches; the bytes of each batch are put behind `sizes`."""
    batch: list[str] = []
    characters = 0
    for document in documents(gathered, split):
        batch.append(document.text)
        characters += len(document.text)
        if characters >= CHUNK_CHARACTERS:
            sizes.append(sum(len(text.encode()) for text in batch))
            yield batch
            batch, characters = [], 0
    if batch:
        sizes.append(sum(len(text.encode()) for text in batch))
        yield batch
