"""Characters as every part reads them: one kind of newline, nothing invisible, Unicode NFC, no surrogates.

For text and conversations alike, so that what a model is trained on and what it is asked are written alike.
Costs about 10 ms a megabyte of plain ASCII, several times that elsewhere.
"""

import re
import unicodedata

_OTHER_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_OVERSTRIKE = re.compile(".\b")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def normalise_characters(text: str) -> str:
    """One kind of newline, no control or invisible characters, no overstriking, no surrogates, NFC."""
    if not text.isascii() or any(mark in text for mark in "\r\x0b\x0c"):
        text = _OTHER_NEWLINES.sub("\n", text)
    if "\b" in text:
        text = _OVERSTRIKE.sub("", text)
    text = _REMOVED.sub("", text)
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text).replace("\u00a0", " ")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    return text


def shown(text: str) -> str:
    """For a terminal, which control characters would tell to do something; newline and tab stay."""
    return _CONTROLS.sub("\ufffd", text)


def valid_text(text: str) -> str:
    """The text with lone surrogates replaced, which neither engine accepts."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
