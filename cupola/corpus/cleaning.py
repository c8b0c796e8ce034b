"""From bytes to clean text, and nothing more: decoding, newlines, control characters, Unicode form, blanks.

Guarantees: the result is valid Unicode without control characters (tab and newline excepted), in NFC, with
no spaces at line ends and never more than one blank line in a row; cleaning it again changes nothing.
Words are never judged here. Costs about 10 ms a megabyte of plain ASCII, several times that elsewhere.

Quality filters, near-duplicates and decontamination belong after `clean`, as further entries of `STEPS`:
functions from text to text, run in order by the process that reads the document, where the text "" means
that the document is dropped. Whoever changes what this package makes of the same bytes raises `VERSION`,
so that caches are made anew.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from cupola.characters import normalise_characters

VERSION = 1
"""Of decoding, cleaning, the readers of formats and the split: part of every cached text's address."""

SNIFFED_BYTES = 8192
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))

_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_BINARY_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\x0b\x0c\x08\x1b\x1f"))


@dataclass(frozen=True)
class Decoded:
    """Text, and by which rule the bytes were read: "utf-8" or what to count and report."""

    text: str
    rule: str


def is_binary(data: bytes) -> bool:
    """Do the first 8 kB look like anything but text? (A NUL byte, or over 5% control characters.)"""
    head = data[:SNIFFED_BYTES]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    if b"\x00" in head:
        return True
    return len(head) - len(head.translate(None, _BINARY_CONTROLS)) > len(head) // 20


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """Read bytes as UTF-8, else by a byte order mark or the declared charset, else as Windows-1252.

    UTF-8 with a few broken bytes among many good sequences keeps the good ones and gets U+FFFD for the
    others. Windows-1252 is Latin-1 with quotation marks where Latin-1 has control characters.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, "replace")
            return Decoded(
                text, "utf-8" if encoding == "utf-8" and "\ufffd" not in text else f"{encoding} mark"
            )
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        pass
    if declared and declared.lower().replace("_", "-") not in ("utf-8", "utf8"):
        try:
            return Decoded(data.decode(declared), f"declared {declared.lower()}")
        except (UnicodeDecodeError, LookupError):
            pass
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    good = sum(1 for character in text if character > "\x7f") - broken
    if good >= 10 * broken:
        return Decoded(text, "utf-8 with broken bytes replaced")
    try:
        return Decoded(data.decode("cp1252"), "windows-1252")
    except UnicodeDecodeError:
        return Decoded(data.decode("latin-1"), "latin-1")


def normalise_blanks(text: str) -> str:
    """No spaces at line ends, at most one blank line in a row, none at either end."""
    text = text.rstrip()
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")


STEPS: tuple[Callable[[str], str], ...] = (normalise_characters, normalise_blanks)


def clean(text: str) -> str:
    """Run `STEPS`."""
    for step in STEPS:
        text = step(text)
    return text
