"""Texts that say passages again and again, to learn to go on as a text went on before.

A passage is words at random; it is said three to eight times, and another follows. Nothing but the text
itself says what comes next, and from the second time on it says all: what learns this has "induction heads"
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022), without which
nothing is found that was hidden (`generators.retrieval`). A head that looks evenly at what went before sees
the right word often enough to be drawn to it in a passage of five, and not in one of fifty: so a text's
passages have at most a sixteenth of its words, and short texts come before longer ones.

Guarantees: a text is a function of seed and number alone. There are no numbers in it, so none of a probe.
"""

from cupola.corpus.generators.items import Items, chosen, number_between
from cupola.corpus.generators.word_lists import WORDS

SHORTEST, SHARE, LONGEST = 4, 16, 64
"""Words of a passage: at least `SHORTEST`, at most `LONGEST`, and at most one in `SHARE` of the text's."""
FEWEST, MOST = 3, 8
"""How often a passage is said."""
USUAL_TEXTS = 10_000


def repetitions(seed: int, words: tuple[int, int]) -> Items[str]:
    """Texts of exactly `words[0]` to `words[1]` words."""

    def make(number: int) -> str:
        key = (seed, "repetition", number)
        length = number_between(*words, *key, "length")
        longest = min(LONGEST, length // SHARE)
        text: list[str] = []
        while len(text) < length:
            own = (*key, len(text))
            size = number_between(SHORTEST, longest, *own, "size")
            times = number_between(FEWEST, MOST, *own, "times")
            text += [chosen(WORDS, *own, "word", place) for place in range(size)] * times
        return " ".join(text[:length])

    return Items(None, make, usual=USUAL_TEXTS)
