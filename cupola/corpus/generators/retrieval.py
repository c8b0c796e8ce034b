"""Texts in which something is hidden and asked for at the end, to learn to find it and to measure who does.

Two kinds. A pass key: one number in much text that says nothing (the task of Mohtashami and Jaggi, "Landmark
Attention", 2023). Needles: several things with a number each, of which the text asks one after the other
(the "multi-key" needles of Hsieh et al., "RULER", 2024, where only the right one is an answer). What lies
around them are sentences of a small grammar, which cost a model next to nothing to learn. Numbers are written
digit by digit, so that no tokenizer joins them.

Guarantees: a document is a function of seed and number alone. No number is hidden in two documents of one
seed, so those that are held out ask for what stands nowhere in the training text. And no document of any
seed hides a number of a probe (`Haystack`): the digits of a probe's add up to a multiple of 10, the digits of
no other do. Costs about 4 ms for 1000 words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cupola.corpus.generators.items import Items, chosen, drawn, number_below, number_between, place_of
from cupola.corpus.generators.word_lists import WORDS

Kind = Literal["passkey", "needle"]
DIGITS = 6
BODIES = 10 ** (DIGITS - 1)
"""Numbers without their last digit, which the sum of the digits decides."""
NUMBERS = 9 * BODIES
"""Those of all documents, so none of a probe."""
MOST_NEEDLES = 4
DOCUMENTS = NUMBERS // MOST_NEEDLES
"""Documents of one seed: each of them has `MOST_NEEDLES` numbers to itself."""
USUAL_DOCUMENTS = 10_000
WORDS_A_NEEDLE = 50
"""So short a document has one needle for each of so many words."""
PARAGRAPH = 8  # sentences

OPENINGS: dict[Kind, str] = {
    "passkey": "A pass key is hidden in this text. Remember it, for the end asks for it.",
    "needle": "The numbers of some things are hidden in this text. Remember them, for the end asks for them.",
}
PASSKEY = "The pass key is {number}. Keep it in mind: {number}."


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLOURS = _words("amber black blue brown copper golden green grey orange purple red white yellow")
PEOPLE = _words("baker captain doctor farmer gardener hunter miller painter sailor soldier tailor teacher")
QUALITIES = _words("calm clever famous friendly honest hungry lazy old patient quiet tall tired young")
DEEDS = _words(
    "admired borrowed carried counted dropped found forgot hid kept mended moved noticed sold wanted"
)
PLACES = (
    "across the square",
    "at the harbour",
    "behind the church",
    "beside the well",
    "by the old bridge",
    "in the workshop",
    "near the mountain pass",
    "on the way home",
    "outside the town",
    "under the oak",
)
TIMES = (
    "After lunch",
    "At noon",
    "Before dawn",
    "Every autumn",
    "In the evening",
    "Last week",
    "One morning",
    "Some days later",
)
SHAPES = (
    ("{} the {} {} {} the {} {}.", (TIMES, QUALITIES, PEOPLE, DEEDS, WORDS, PLACES)),
    ("The {} {} the {} and the {} {}.", (PEOPLE, DEEDS, WORDS, WORDS, PLACES)),
    ("The {} {} {} the {}, and the {} {} the {}.", (QUALITIES, PEOPLE, DEEDS, WORDS, PEOPLE, DEEDS, WORDS)),
    ("{} the {} {} the {}.", (TIMES, PEOPLE, DEEDS, WORDS)),
)
"""Sentences that say nothing: their form, and what may stand in each place."""


@dataclass(frozen=True)
class Needle:
    """Something hidden.

    Attributes:
        sentence: what hides it.
        question: what asks for it, to the word before the answer.
        answer: the digits, with blanks between them.
    """

    sentence: str
    question: str
    answer: str


def documents(seed: int, words: tuple[int, int]) -> Items[str]:
    """Texts of both kinds, of about `words[0]` to `words[1]` words."""

    def hidden(place: int) -> str:
        return number_at(place_of(place, NUMBERS, seed, "retrieval"))

    def make(number: int) -> str:
        key = (seed, "retrieval", number)
        kind: Kind = ("passkey", "needle")[number_below(2, *key, "kind")]
        length = number_between(*words, *key, "length")
        most = min(MOST_NEEDLES, max(1, length // WORDS_A_NEEDLE))
        count = 1 if kind == "passkey" or most == 1 else number_between(2, most, *key, "needles")
        needles = _needles(kind, [hidden(number * MOST_NEEDLES + i) for i in range(count)], *key)
        asked = [f"{n.question} {n.answer}." for n in drawn(needles, count, *key, "asked")]
        fixed = [OPENINGS[kind], *(needle.sentence for needle in needles), *asked]
        left = length - sum(len(text.split()) for text in fixed)
        filler: list[str] = []
        while left > 0:
            filler.append(sentence(*key, "filler", len(filler)))
            left -= len(filler[-1].split())
        places = [number_below(len(filler) + 1, *key, "place", i) for i in range(count)]
        return _joined(kind, _hidden(filler, needles, places), asked)

    return Items(DOCUMENTS, make, usual=USUAL_DOCUMENTS)


@dataclass
class Haystack:
    """A probe: a text of any length, that asks for one thing, which lies wherever it is wanted.

    The same thing, the same other needles and the same sentences around them, whatever the length and depth.
    """

    kind: Kind
    seed: int
    number: int
    _filler: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        count = 1 if self.kind == "passkey" else MOST_NEEDLES
        first = self.number * count
        self._needles = _needles(
            self.kind, [_probe_number(first + i, self.seed) for i in range(count)], *self._key
        )

    @property
    def _key(self) -> tuple[int | str, ...]:
        return (self.seed, "probe", self.kind, self.number)

    @property
    def answer(self) -> str:
        """The digits that are right."""
        return self._needles[0].answer

    def prompt(self, sentences: int, depth: float) -> str:
        """The text up to where the answer follows, behind a blank.

        Args:
            sentences: how many of them lie around what is hidden.
            depth: the share of them before what is asked for: 0 at the beginning, 1 at the end.
        """
        while len(self._filler) < sentences:
            self._filler.append(sentence(*self._key, "filler", len(self._filler)))
        # Shares, so that the others keep their places in a longer text.
        shares = [number_below(1001, *self._key, "place", i) / 1000 for i in range(1, len(self._needles))]
        places = [math.floor(share * sentences + 0.5) for share in (depth, *shares)]
        hidden = _hidden(self._filler[:sentences], self._needles, places)
        return _joined(self.kind, hidden, [self._needles[0].question])


def sentence(*key: int | str) -> str:
    """A sentence that says nothing; the same for the same key."""
    left, shape = divmod(number_below(2**62, *key), len(SHAPES))
    form, places = SHAPES[shape]
    words = []
    for options in places:
        left, place = divmod(left, len(options))
        words.append(options[place])
    return form.format(*words)


def _needles(kind: Kind, numbers: Sequence[str], *key: int | str) -> list[Needle]:
    if kind == "passkey":
        question = "What is the pass key? The pass key is"
        return [Needle(PASSKEY.format(number=number), question, number) for number in numbers]
    things = drawn(WORDS, len(numbers), *key, "things")
    made = []
    for thing, number in zip(things, numbers, strict=True):
        said = f"number of the {chosen(COLOURS, *key, 'colour', thing)} {thing}"
        made.append(Needle(f"The {said} is {number}.", f"What is the {said}? The {said} is", number))
    return made


def number_at(place: int) -> str:
    """One of the `NUMBERS`, by its place among them: digits whose sum is no multiple of 10."""
    body, rest = divmod(place, 9)
    return _with_sum(body, rest + 1)


def _probe_number(place: int, seed: int) -> str:
    """The same among those of probes: digits whose sum is a multiple of 10."""
    return _with_sum(place_of(place % BODIES, BODIES, seed, "probe"), 0)


def _with_sum(body: int, rest: int) -> str:
    digits = [int(digit) for digit in f"{body:0{DIGITS - 1}d}"]
    return " ".join(map(str, [*digits, (rest - sum(digits)) % 10]))


def _hidden(filler: Sequence[str], needles: Sequence[Needle], places: Sequence[int]) -> list[str]:
    """The sentences, with each needle before the one at its place (or at the end)."""
    at: dict[int, list[str]] = {}
    for needle, place in zip(needles, places, strict=True):
        at.setdefault(place, []).append(needle.sentence)
    found: list[str] = []
    for place in range(len(filler) + 1):
        found += at.get(place, [])
        found += filler[place : place + 1]
    return found


def _joined(kind: Kind, body: Sequence[str], asked: Sequence[str]) -> str:
    paragraphs = [" ".join(body[first : first + PARAGRAPH]) for first in range(0, len(body), PARAGRAPH)]
    return "\n\n".join([OPENINGS[kind], *paragraphs, " ".join(asked)])
