"""What words mean, from a dictionary in dictd's format: headwords at the margin, definitions indented.

The answer is the first sense, from its first sentence on as many as fit. Each word is asked once. Entries
that only refer to another, and those whose first sentence is long, are left out and counted.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from cupola.corpus.formats.plain import dictionary_to_text
from cupola.corpus.generators.items import Facts, Items, Turns, chosen, place_of, whole_sentences
from cupola.recipe.corpora import Corpus

FACTS = Corpus(apt="dict-jargon", files="usr/share/dictd/*.dict.dz")
LONGEST_WORD = 40
LONGEST_DEFINITION = 300
WORDINGS = (
    'What does "{word}" mean?',
    'Define "{word}".',
    'What is the meaning of "{word}"?',
    'Explain the word "{word}".',
)
_ENTRY = re.compile(r"^(?P<word>\S.*)\n(?P<body>(?:[ \t].*\n|[ \t]*\n)+)", re.M)
_GRAMMAR = re.compile(r"\A ?\S.*\n")
"""The line of pronunciation and part of speech, at most one column in."""
_ASIDE = re.compile(
    r"(?:\d+\.|(?:(?:n|v|vt|vi|adj|adv|interj)\.,?)+(?=\s)|\[[^\]]*\]|\((?:also|alt\.)[^()]*\))\s*"
)
"""What may stand before a definition: number, part of speech, origin, another spelling."""
_LINK = re.compile(r"\{\s*([^{}]*?)\s*\}")
_REFERENCE = re.compile(r"(?:See(?: also)?|Syn(?:onym)?|Same as|Compare)\b", re.I)


def definitions(seed: int, facts: Sequence[Facts]) -> Items:
    """What does "foo" mean? A sample name for absolutely anything."""
    unasked: Counter[str] = Counter()
    known: dict[str, str] = {}
    for _, text in facts:
        for word, body in _entries(text):
            reason, definition = _definition(word, body)
            if reason or word in known:
                unasked[reason or "second entry for a word"] += 1
            else:
                known[word] = definition
    words = list(known)

    def make(number: int) -> Turns:
        word = words[place_of(number, len(words), seed, "definitions")]
        return [chosen(WORDINGS, seed, "wording", word).format(word=word), known[word]]

    return Items(len(words), make, unasked)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Headwords and what is indented under them; the dictionary's remarks on itself are no entries."""
    for found in _ENTRY.finditer(dictionary_to_text(text.lstrip("\n")) + "\n"):
        if not found["word"].startswith("00"):
            yield found["word"].strip(), found["body"]


def _definition(word: str, body: str) -> tuple[str, str]:
    """(why there is none, definition)."""
    if len(word) > LONGEST_WORD or word.endswith((":", ".")) or '"' in word:
        return "headword that is no word", ""
    for paragraph in re.split(r"\n[ \t]*\n", _GRAMMAR.sub("", body)):
        text = _LINK.sub(r"\1", " ".join(paragraph.split()))
        while aside := _ASIDE.match(text):
            text = text[aside.end() :]
        if not text:
            continue
        if _REFERENCE.match(text):
            return "entry that refers to another", ""
        found = whole_sentences(text, LONGEST_DEFINITION)
        return ("", found) if found else (f"definition of over {LONGEST_DEFINITION} characters", "")
    return "entry without a definition", ""
