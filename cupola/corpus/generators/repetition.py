"""Texts that say passages again and again, to learn to go on as a text went on before.

A passage is said three to eight times, and another follows. Nothing but the text itself says what comes next,
and from the second time on it says all: what learns this has "induction heads" (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Olsson et al. 2022), without which nothing is found that
was hidden (`generators.retrieval`).

- `repetitions`: words at random. A head that looks evenly at what went before sees the right word often
  enough to be drawn to it in a passage of five, and not in one of fifty: so a text's passages have at most a
  sixteenth of its words, and short texts come before longer ones.
- `recalls`: some words and a number, digit by digit, once to four times (the keys and values of Arora et al.
  2023, "Zoology"). Whoever repeats words does not repeat digits yet: ten tokens that are all over the text
  say little about where it is. A recurrent model has to learn this besides, to keep a pass key in its state.

Guarantees: a text is a function of seed and number alone. No number in it is one of a probe.
"""

from collections.abc import Callable

from cupola.corpus.generators.items import Items, chosen, number_below, number_between
from cupola.corpus.generators.retrieval import NUMBERS, number_at
from cupola.corpus.generators.word_lists import WORDS

SHORTEST, SHARE, LONGEST = 4, 16, 64
"""Words of a passage: at least `SHORTEST`, at most `LONGEST`, and at most one in `SHARE` of the text's."""
FEWEST, MOST = 3, 8
"""How often a passage is said."""
MOST_KEY, MOST_PAIRS, WORDS_A_PAIR = 3, 4, 50
"""Words before a number; numbers of a passage, at most one for so many words of the text."""
USUAL_TEXTS = 10_000


def repetitions(seed: int, words: tuple[int, int]) -> Items[str]:
    """Texts of exactly `words[0]` to `words[1]` words."""

    def passage(length: int, *key: int | str) -> list[str]:
        size = number_between(SHORTEST, min(LONGEST, length // SHARE), *key, "size")
        return [chosen(WORDS, *key, "word", place) for place in range(size)]

    return _said_again("repetition", passage, seed, words)


def recalls(seed: int, words: tuple[int, int]) -> Items[str]:
    """The same, of words and numbers; a digit counts as a word."""

    def passage(length: int, *key: int | str) -> list[str]:
        said: list[str] = []
        for pair in range(number_between(1, min(MOST_PAIRS, length // WORDS_A_PAIR), *key, "pairs")):
            size = number_between(1, MOST_KEY, *key, "size", pair)
            said += [chosen(WORDS, *key, "word", pair, place) for place in range(size)]
            said += number_at(number_below(NUMBERS, *key, "number", pair)).split()
        return said

    return _said_again("recall", passage, seed, words)


def _said_again(
    program: str, passage: Callable[..., list[str]], seed: int, words: tuple[int, int]
) -> Items[str]:
    def make(number: int) -> str:
        key = (seed, program, number)
        length = number_between(*words, *key, "length")
        text: list[str] = []
        while len(text) < length:
            own = (*key, len(text))
            text += passage(length, *own) * number_between(FEWEST, MOST, *own, "times")
        return " ".join(text[:length])

    return Items(None, make, usual=USUAL_TEXTS)
