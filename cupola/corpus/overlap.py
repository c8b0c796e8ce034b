"""Two judgements that reading packages needs: is it English, and is it the same text in another format?

Packages ship one manual as HTML, text, Info and manual pages, and in many languages. Formats are compared by
anchors: hashes of a long word and the three words behind it, which survive another layout. This is not
near-duplicate removal between documents; it only keeps a package from being read twice.
"""

import re
import zlib

ANCHOR = re.compile(r"\b([A-Za-z]{9,})\W+(\w+)\W+(\w+)\W+(\w+)")
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


def anchors(text: str) -> frozenset[int]:
    """Fingerprints of a text: one for about ten words, the same in any layout."""
    return frozenset(zlib.crc32(" ".join(found).lower().encode()) for found in ANCHOR.findall(text))


def reads_as_english(text: str) -> bool:
    """Do a text's common words look English? Judged on samples of its middle and beginning.

    A table or listing with next to no common words of any language passes: that is another question.
    """
    middle = len(text) // 2
    sample = text[:SAMPLE] + " " + text[middle : middle + SAMPLE]
    letters = sum(character.isalpha() for character in sample)
    if (
        letters
        and sum(ord(character) > 0x24F and character.isalpha() for character in sample)
        > NON_LATIN_SHARE * letters
    ):
        return False
    words = re.findall(r"[^\W\d_]+", sample.lower())
    if not words:
        return True
    english = sum(word in ENGLISH for word in words)
    others = sum(word in OTHERS for word in words)
    return english >= ENGLISH_SHARE * len(words) or english >= others
