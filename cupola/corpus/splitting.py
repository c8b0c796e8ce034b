"""Which text is held out, decided by the text alone.

Guarantees:
- A piece of text is held out if the hash of its normalised words falls below the share. Neither the order of
  files, nor other documents, nor the number of processes moves it from one side to the other; only the
  minimum below can.
- Two texts that differ at most in white space and letter case have one hash, so they are never on both
  sides: the second is a duplicate and is dropped.
- A document of over 200 kB is decided section by section (about 50 kB, cut at blank lines), so that a book
  is held out in part. What is not held out of it stays together: its training pieces are the longest runs
  of sections, so long documents stay long.
- Of conversations and pairs of answers the first question decides, so that all records which ask the same
  are on one side.
- If a source has two pieces or more and none fell below the share, the one with the lowest hash is held out.

Costs one 8-byte hash a piece: about 100 bytes of memory for each document of a source while it is gathered.
Trade-off: with 64 bits, of ten million documents one is wrongly called a duplicate with a chance of 3e-6.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

LONG_DOCUMENT = 200_000
SECTION = 50_000
HASH_RANGE = 2**64

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n+")
_LINE_END = re.compile(r"\n+")


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document.

    Attributes:
        hash: of the text; equal ones are duplicates.
        key: what decides its side; of text the same hash, of a record that of what it begins with.
    """

    text: str
    hash: int
    key: int


def text_hash(text: str) -> int:
    """64-bit hash of the words of a text, blind to white space and letter case."""
    words = " ".join(text.split()).lower()
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8"), digest_size=8).digest(), "big")


def is_heldout(value: int, share: float) -> bool:
    """Does this hash fall below the share?"""
    return value < share * HASH_RANGE


def cut_at_breaks(text: str, length: int) -> Iterator[str]:
    """Cut a text into pieces of about `length` characters that join to the text again.

    A cut falls behind a blank line if one comes within a piece's second half, else behind a line, else
    anywhere.
    """
    start = 0
    while len(text) - start > length * 3 // 2:
        end = start + length
        for pattern in (_PARAGRAPH_END, _LINE_END):
            found = pattern.search(text, start + length // 2, start + length * 3 // 2)
            if found:
                end = found.end()
                for later in pattern.finditer(text, found.end(), start + length * 3 // 2):
                    if later.end() > start + length:
                        break
                    end = later.end()
                break
        yield text[start:end]
        start = end
    yield text[start:]


def sections(text: str) -> list[Section]:
    """The parts of a document that are held out or not by themselves; one, unless it is long."""
    if len(text) <= LONG_DOCUMENT:
        return [_section(text)]
    return [_section(part) for part in cut_at_breaks(text, SECTION)]


def _section(text: str) -> Section:
    value = text_hash(text)
    return Section(text, value, value)
