"""From gathered conversations to stores of packed rows: one for each split, template and row length.

    <cache>/stores/<hash of text, tokenizer, template and row length>/train     a `cupola.data.store` of rows
                                                                     /heldout

Every conversation stands whole in one row, whose other tokens belong to other conversations; which tokens
are learnt the template says. One that is longer than a row loses its end, and is dropped if nothing that is
learnt is left; both are counted and said. A split's tokens are held in memory while they are packed.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cupola import storage
from cupola.chat.conversation import Unusable, from_json
from cupola.chat.encoding import Encoded, encode
from cupola.chat.template import ChatTemplate
from cupola.corpus.built import build_once
from cupola.corpus.documents import Split, documents, totals
from cupola.corpus.encoding import SPLITS, check_store
from cupola.corpus.tokenizer import Tokenizer
from cupola.data.packing import pack
from cupola.data.store import StoreWriter, stores_root
from cupola.display import Display, count
from cupola.errors import InputError

VERSION = 1
"""Raised whenever the same conversations would give another store."""
ROWS_AT_ONCE = 4096


def encode_conversations(
    gathered: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    row_length: int,
    display: Display,
    name: str = "conversations",
) -> Path:
    """Encode and pack a gathered source of conversations; the folder of its stores, `train` and `heldout`.

    Args:
        gathered: folder of `cupola.corpus.documents`, each a conversation (`chat.conversation.as_json`).
        row_length: tokens of a row.
        name: what the display calls it.

    Raises:
        InputError: nothing that could be learnt is left of it; the tokenizer lacks the template's tokens.
        CupolaError: the text can't be read, the disk is full.
    """
    files = storage.read_manifest(gathered)["files"]
    made_from = {
        "version": VERSION,
        "texts": {split: files[f"{split}.parquet"]["sha256"] for split in SPLITS},
        "tokenizer": tokenizer.fingerprint,
        "template": template.fingerprint,
        "row_length": row_length,
    }
    folder = stores_root() / storage.digest(made_from)[:32]
    for split in SPLITS:
        target = folder / split
        work = partial(_encode_split, gathered, split, target, tokenizer, template, row_length, display, name)
        build_once(target, work, display, partial(check_store, target, tokenizer))
    return folder


def _encode_split(
    gathered: Path,
    split: Split,
    target: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    row_length: int,
    display: Display,
    name: str,
) -> None:
    set_aside: Counter[str] = Counter()
    number, _ = totals(gathered, split)
    title = f"encode {name}" if split == "train" else f"encode {name}, held out"
    with display.task(title, number, "conversations") as task:
        found = []
        for item in _items(gathered, split, tokenizer, template, row_length, set_aside):
            task.advance(1)
            if item is not None:
                found.append(item)
    for reason, times in set_aside.items():
        display.warn(f"{name}: {times:,} conversations {reason}")
    if split == "train" and not found:
        raise InputError(
            f"corpora.{name}: no conversation is left that could be learnt from; raise sequence_length"
        )
    rows = pack(np.array([len(item.ids) + 1 for item in found], dtype=np.int64), row_length)
    facts = {"text": gathered.name, "split": split, "conversations": len(found), "set_aside": dict(set_aside)}
    with StoreWriter(target, tokenizer, facts, row_length) as writer:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            tokens, learnt = _filled(
                rows[first : first + ROWS_AT_ONCE], found, row_length, tokenizer.delimiter
            )
            writer.append_rows(tokens, learnt, int(tokenizer.text_bytes[tokens[learnt]].sum()))
    if rows:
        share = sum(len(item.ids) + 1 for item in found) / (len(rows) * row_length)
        learnt_share = sum(int(item.mask.sum()) for item in found) / (len(rows) * row_length)
        display.say(
            f"packed {count(len(found))} conversations into {count(len(rows))} rows of {row_length} tokens:"
            f" {share:.0%} filled, {learnt_share:.0%} learnt"
        )


def _items(
    gathered: Path,
    split: Split,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    row_length: int,
    set_aside: Counter[str],
) -> Iterator[Encoded | None]:
    """Each conversation's tokens, or None where it is set aside."""
    for document in documents(gathered, split):
        try:
            item = encode(template, tokenizer, from_json(document.text))
        except Unusable as error:
            set_aside[f"were dropped: {error.reason}"] += 1
            yield None
            continue
        if len(item.ids) < row_length:
            yield item
            continue
        item = Encoded(item.ids[: row_length - 1], item.mask[: row_length - 1])
        if item.mask.any():
            set_aside[f"are longer than a row of {row_length} tokens and lost their end"] += 1
            yield item
        else:
            set_aside[f"were dropped: no answer begins within a row of {row_length} tokens"] += 1
            yield None


def _filled(
    rows: list[list[int]], items: list[Encoded], row_length: int, delimiter: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, row_length) tokens, and which of them are learnt."""
    tokens = np.full((len(rows), row_length), delimiter, dtype=np.int64)
    learnt = np.zeros((len(rows), row_length), dtype=bool)
    for number, row in enumerate(rows):
        place = 0
        for index in row:
            end = place + len(items[index].ids)
            tokens[number, place:end] = items[index].ids
            learnt[number, place:end] = items[index].mask
            place = end + 1
    return tokens, learnt
