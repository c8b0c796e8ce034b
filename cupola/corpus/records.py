"""From gathered records to stores of packed rows: one for each split, template and kind of rows.

    <cache>/stores/<hash of records, tokenizer, template and rows>/train   a `cupola.data.store` of rows
                                                                 /heldout

What of a record stands in a row is `corpus.items`'. What is set aside is counted and said. A split's tokens
are held in memory while they are packed.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cupola import storage
from cupola.corpus.built import build_once
from cupola.corpus.documents import Split, documents, totals
from cupola.corpus.encoding import SPLITS, check_store
from cupola.corpus.items import Writing, length_of
from cupola.corpus.packed_text import write_rows
from cupola.data.packing import pack
from cupola.data.store import stores_root
from cupola.display import Display, count
from cupola.errors import InputError
from cupola.recipe.corpora import CALLED


def encode_records(gathered: Path, writing: Writing, display: Display, name: str = "conversations") -> Path:
    """Encode and pack a gathered source of records; the folder of its stores, `train` and `heldout`.

    Args:
        gathered: folder of `cupola.corpus.documents`, each a line of `chat.records`.
        name: what the display calls it.

    Raises:
        InputError: nothing that could be learnt is left of it; the tokenizer lacks the template's tokens.
        CupolaError: the text can't be read, the disk is full.
    """
    files = storage.read_manifest(gathered)["files"]
    texts = {split: files[f"{split}.parquet"]["sha256"] for split in SPLITS}
    folder = stores_root() / storage.digest({**writing.facts(), "texts": texts})[:32]
    for split in SPLITS:
        target = folder / split
        work = partial(_encode_split, gathered, split, target, writing, display, name)
        build_once(target, work, display, partial(check_store, target, writing.tokenizer))
    return folder


def _encode_split(
    gathered: Path, split: Split, target: Path, writing: Writing, display: Display, name: str
) -> None:
    set_aside: Counter[str] = Counter()
    number, _ = totals(gathered, split)
    called, length = CALLED[writing.rows.format], writing.rows.length
    title = f"encode {name}" if split == "train" else f"encode {name}, held out"
    with display.task(title, number, "records") as task:

        def lines() -> Iterator[str]:
            for document in documents(gathered, split):
                task.advance(1)
                yield document.text

        found = list(writing.items(lines(), set_aside))
    for reason, times in set_aside.items():
        display.warn(f"{name}: {times:,} {called} {reason}")
    if split == "train" and not found:
        why = ", ".join(f"{times:,} {reason}" for reason, times in set_aside.items())
        raise InputError(
            f"corpora.{name}: none of its {called} is left to learn from ({why}); raise sequence_length, or"
            " give it others"
        )
    rows = pack(np.fromiter(map(length_of, found), np.int64, len(found)), length)
    facts = {"text": gathered.name, "split": split, "items": len(found), "set_aside": dict(set_aside)}
    write_rows(target, writing.tokenizer, facts, rows, found, length)
    if rows:
        room = len(rows) * length
        share = sum(map(length_of, found)) / room
        learnt_share = sum(int((learnt != 0).sum()) for item in found for _, learnt in item) / room
        display.say(
            f"packed {count(len(found))} {called} into {count(len(rows))} rows of {length} tokens:"
            f" {share:.0%} filled, {learnt_share:.0%} learnt"
        )
