"""Texts that say the same passage again and again, to learn to go on as a text went on before.

A passage is words at random, in every third text with numbers among them, digit by digit. Nothing but the
text itself says what comes next, and from the second time on it says all: what learns this has "induction
heads" (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022), without
which nothing is found that was hidden (`generators.retrieval`). A small model comes to them in one or two
million tokens of these texts, where ten million that hide and ask do not bring it there.

Guarantees: a text is a function of seed and number alone. Its numbers have less digits than those of
`generators.retrieval`, of which none can be in it.
"""

from cupola.corpus.generators.items import Items, chosen, number_below
from cupola.corpus.generators.retrieval import DIGITS
from cupola.corpus.generators.word_lists import WORDS

SHORTEST, LONGEST = 6, 48
"""Words of a passage."""
TIMES = 3
"""A passage is said at least so often."""
USUAL_TEXTS = 10_000


def repetitions(seed: int, words: tuple[int, int]) -> Items[str]:
    """Texts of exactly `words[0]` to `words[1]` words, a number's digits counted as words."""

    def make(number: int) -> str:
        key = (seed, "repetition", number)
        length = words[0] + number_below(words[1] - words[0] + 1, *key, "length")
        longest = min(LONGEST, length // TIMES)
        size = SHORTEST + number_below(longest - SHORTEST + 1, *key, "size")
        passage = _passage(size, number % 3 == 2, *key)
        return " ".join((passage * (length // size + 1))[:length])

    return Items(None, make, usual=USUAL_TEXTS)


def _passage(size: int, numbers: bool, *key: int | str) -> list[str]:
    """Words, or by turns of words and numbers: `size` of them."""
    passage: list[str] = []
    while len(passage) < size:
        place = len(passage)
        passage.append(chosen(WORDS, *key, "word", place))
        if numbers:
            digits = 1 + number_below(DIGITS - 1, *key, "digits", place)
            passage += [str(number_below(10, *key, "digit", place, i)) for i in range(digits)]
    return passage[:size]
