"""Judgements that reading packages needs: is it English, is it the same text again, is it furniture?

Packages ship one manual as HTML, text, Info and manual pages, and in many languages. Formats are compared by
anchors: hashes of a long word and the three words behind it, which survive another layout. This is not
near-duplicate removal between documents; it only keeps a package from being read twice. Furniture is what a
generator puts around the text: banners, footers, tables of contents.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, islice

ANCHOR = re.compile(r"\b([A-Za-z]{9,})\W+(\w+)\W+(\w+)\W+(\w+)")
WORD = re.compile(r"[^\W\d_]+")
HEADING = re.compile(r"[^\n]{0,69}[^\n.!?:;,]")
NON_LATIN = re.compile(r"[\u0370-\u1dff\u3040-\ud7ff]")
ENGLISH = frozenset(
    {"the", "of", "and", "to", "a", "in", "is", "that", "for", "it", "as", "with", "be", "this", "on", "are"}
    | {"by", "or", "not", "from", "you", "an", "can", "if"}
)
OTHERS = frozenset(
    {"de", "la", "le", "les", "et", "des", "en", "un", "une", "que", "el", "los", "las", "y"}
    | {"der", "die", "das", "und", "den", "von", "zu", "mit", "ist", "ein", "nicht", "il", "di", "che"}
    | {"e", "per", "da", "do", "não", "um", "uma", "os", "para", "w", "na", "z", "się", "i"}
    | {"nie", "och", "att", "det", "som", "het", "van", "een", "je"}
)
"""Common words of the other languages that manuals are most often translated to."""
ENGLISH_SHARE = 0.06
NON_LATIN_SHARE = 0.3
SAMPLE = 6000
EDGE_LINES = 3
FEWEST_PAGES = 8
CONTENTS_ENTRIES = 40


def anchors(text: str) -> frozenset[int]:
    """Fingerprints of a text: one for about ten words, the same in any layout."""
    return frozenset(zlib.crc32(" ".join(found).lower().encode()) for found in ANCHOR.findall(text))


def reads_as_english(text: str) -> bool:
    """Do a text's common words look English? Judged on samples of its middle and beginning.

    A table or listing with next to no common words of any language passes: that is another question.
    """
    middle = len(text) // 2
    sample = text[:SAMPLE] + " " + text[middle : middle + SAMPLE]
    words = WORD.findall(sample.lower())
    if not sample.isascii() and len(NON_LATIN.findall(sample)) > NON_LATIN_SHARE * sum(map(len, words)):
        return False
    if not words:
        return True
    english = sum(word in ENGLISH for word in words)
    others = sum(word in OTHERS for word in words)
    return english >= ENGLISH_SHARE * len(words) or english >= others


def common_edges(texts: Sequence[str]) -> frozenset[str]:
    """Lines among the first or last `EDGE_LINES` of over half of the texts: banners and footers."""
    seen = Counter(line for text in texts for line in {*_edge(text, 1), *_edge(text, -1)})
    return frozenset(line for line, number in seen.items() if 2 * number > len(texts) >= FEWEST_PAGES)


def without_edges(text: str, edges: frozenset[str]) -> str:
    """A text without the leading and trailing lines that are in `edges`."""
    if not edges:
        return text
    lines = text.split("\n")
    while lines and (not lines[0].strip() or lines[0].strip() in edges):
        lines.pop(0)
    while lines and (not lines[-1].strip() or lines[-1].strip() in edges):
        lines.pop()
    return "\n".join(lines)


def _edge(text: str, step: int) -> list[str]:
    lines = (line.strip() for line in text.strip().split("\n")[::step])
    return list(islice(filter(None, lines), EDGE_LINES))


def without_contents(text: str) -> str:
    """A plain text without its tables of contents.

    That is: at least `CONTENTS_ENTRIES` paragraphs in a row, each one short line that is no sentence.
    """
    paragraphs = text.split("\n\n")
    kept: list[str] = []
    for is_heading, run in groupby(paragraphs, key=lambda part: HEADING.fullmatch(part) is not None):
        parts = list(run)
        if not is_heading or len(parts) < CONTENTS_ENTRIES:
            kept += parts
    return "\n\n".join(kept)
