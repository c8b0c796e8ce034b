"""From gathered conversations, or pairs of answers, to stores of packed rows: one for each split, template
and row length.

    <cache>/stores/<hash of records, tokenizer, template and row length>/train   a `cupola.data.store` of rows
                                                                        /heldout

An item stands whole in one row, whose other tokens belong to other items; which tokens are learnt the
template says. An item is a sequence of tokens, or several, each between delimiters: of a pair the chosen
answer with its prompt, and then the rejected one with the same prompt, of which the answers alone are learnt.
A conversation that is longer than a row loses its end, and is dropped if nothing that is learnt is left; a
pair that is longer is dropped, since what is left of it would be no pair. All are counted and said. A split's
tokens are held in memory while they are packed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cupola import storage
from cupola.chat import conversation, preference
from cupola.chat.conversation import Unusable
from cupola.chat.encoding import encode
from cupola.chat.template import ChatTemplate
from cupola.corpus.built import build_once
from cupola.corpus.documents import Split, documents, totals
from cupola.corpus.encoding import SPLITS, check_store
from cupola.corpus.tokenizer import Tokenizer
from cupola.data.packing import fill, pack
from cupola.data.store import StoreWriter, stores_root
from cupola.display import Display, count
from cupola.errors import InputError
from cupola.recipe.corpora import CALLED, Format

VERSION = 2
"""Raised whenever the same records would give another store."""
ROWS_AT_ONCE = 4096
Sequence = tuple[np.ndarray, np.ndarray]
"""Ids, and which of them are learnt."""
Item = tuple[Sequence, ...]


@dataclass(frozen=True)
class Writing:
    """How records become rows.

    Attributes:
        format: chat or preference.
        row_length: tokens of a row.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    format: Format
    row_length: int

    def facts(self) -> dict[str, str | int]:
        """Everything that the rows depend on, beside the records."""
        return {
            "version": VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.template.fingerprint,
            "format": self.format,
            "row_length": self.row_length,
        }

    def item(self, line: str, set_aside: Counter[str]) -> Item | None:
        """A record's sequences; None, and counted under its reason, where nothing can be learnt from it."""
        try:
            return ITEMS[self.format](self, line, set_aside)
        except Unusable as error:
            set_aside[f"were dropped: {error.reason}"] += 1
            return None


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
    title = f"encode {name}" if split == "train" else f"encode {name}, held out"
    with display.task(title, number, CALLED[writing.format]) as task:
        found = []
        for document in documents(gathered, split):
            task.advance(1)
            if (item := writing.item(document.text, set_aside)) is not None:
                found.append(item)
    for reason, times in set_aside.items():
        display.warn(f"{name}: {times:,} {CALLED[writing.format]} {reason}")
    if split == "train" and not found:
        raise InputError(
            f"corpora.{name}: none of its {CALLED[writing.format]} is left to learn from;"
            " raise sequence_length"
        )
    rows = pack(np.fromiter(map(_length, found), np.int64, len(found)), writing.row_length)
    facts = {"text": gathered.name, "split": split, "items": len(found), "set_aside": dict(set_aside)}
    tokenizer = writing.tokenizer
    with StoreWriter(target, tokenizer, facts, writing.row_length) as writer:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[first : first + ROWS_AT_ONCE]
            filled = fill(some, found, writing.row_length, tokenizer.delimiter)
            text_bytes = int(tokenizer.text_bytes[filled.tokens[filled.learnt]].sum())
            writer.append_rows(filled.tokens, filled.learnt, text_bytes)
    if rows:
        room = len(rows) * writing.row_length
        share = sum(map(_length, found)) / room
        learnt_share = sum(int(mask.sum()) for item in found for _, mask in item) / room
        display.say(
            f"packed {count(len(found))} {CALLED[writing.format]} into {count(len(rows))} rows of"
            f" {writing.row_length} tokens: {share:.0%} filled, {learnt_share:.0%} learnt"
        )


def _conversation(writing: Writing, line: str, set_aside: Counter[str]) -> Item | None:
    ids, mask = _encoded(writing, conversation.from_json(line))
    length = writing.row_length
    if len(ids) < length:
        return ((ids, mask),)
    ids, mask = ids[: length - 1], mask[: length - 1]
    if mask.any():
        set_aside[f"are longer than a row of {length} tokens and lost their end"] += 1
        return ((ids, mask),)
    set_aside[f"were dropped: no answer begins within a row of {length} tokens"] += 1
    return None


def _pair(writing: Writing, line: str, set_aside: Counter[str]) -> Item | None:
    pair = preference.from_json(line)
    given = sum(message.role == "assistant" for message in pair.prompt)
    item = tuple(_encoded(writing, whole, given) for whole in pair.conversations())
    if _length(item) > writing.row_length:
        set_aside[
            f"were dropped: both answers with their prompts are over a row of {writing.row_length}"
        ] += 1
        return None
    return item


def _encoded(writing: Writing, whole: conversation.Conversation, answers_given: int = 0) -> Sequence:
    found = encode(writing.template, writing.tokenizer, whole, answers_given)
    return found.ids, found.mask


ITEMS: dict[Format, Callable[[Writing, str, Counter[str]], Item | None]] = {
    "chat": _conversation,
    "preference": _pair,
}


def _length(item: Item) -> int:
    """Tokens of an item, with a delimiter after each of its sequences."""
    return sum(len(ids) + 1 for ids, _ in item)
