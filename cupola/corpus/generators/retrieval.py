"""Texts in which something is hidden and asked for at the end, to learn to find it and to measure who does.

Two kinds. A pass key: three words in much text that says nothing (the task of Mohtashami and Jaggi, "Landmark
Attention", 2023). Needles: several things with a secret each, of which the text asks one after the other
(the "multi-key" needles of Hsieh et al., "RULER", 2024, where only the right one is an answer).

Made so that a small model learns it soon: around what is hidden a few sentences of a small grammar come again
and again, other ones in each document, so that copying what stands further up pays in every line. Secrets are
words that stand nowhere else, none of them twice in one secret, because digits, of which each follows
upon many others, take far longer.

Guarantees: a document is a function of seed and number alone. No secret is hidden in two documents of one
seed, so those that are held out ask for what stands nowhere in the training text. And no document of any
seed hides the secret of a probe (`Haystack`): of all secrets in order, every tenth is a probe's.
Costs about 3 ms for 1000 words.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cupola.corpus.generators.items import Items, chosen, drawn, number_below, place_of
from cupola.corpus.generators.word_lists import WORDS

Kind = Literal["passkey", "needle"]
MOST_NEEDLES = 4
USUAL_DOCUMENTS = 10_000
WORDS_A_NEEDLE = 50
"""So short a document has one needle for each of so many words."""
PARAGRAPH = 8  # sentences
DIFFERENT = 8
"""Sentences that a document repeats."""

OPENINGS: dict[Kind, str] = {
    "passkey": "A pass key is hidden in this text. Remember it, for the end asks for it.",
    "needle": "The secrets of some things are hidden in this text. Remember them, for the end asks for them.",
}
PASSKEY = "The pass key is {secret}. Keep it in mind: {secret}."


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
THINGS = WORDS[::2]
SHAPES = (
    ("{} the {} {} {} the {} {}.", (TIMES, QUALITIES, PEOPLE, DEEDS, THINGS, PLACES)),
    ("The {} {} the {} and the {} {}.", (PEOPLE, DEEDS, THINGS, THINGS, PLACES)),
    ("The {} {} {} the {}, and the {} {} the {}.", (QUALITIES, PEOPLE, DEEDS, THINGS, PEOPLE, DEEDS, THINGS)),
    ("{} the {} {} the {}.", (TIMES, PEOPLE, DEEDS, THINGS)),
)
"""Sentences that say nothing: their form, and what may stand in each place."""

_ELSEWHERE = set(re.findall(r"\w+", " ".join([*COLOURS, *PLACES, *TIMES, *OPENINGS.values(), PASSKEY])))
SECRET_WORDS = tuple(word for word in WORDS[1::2] if word not in _ELSEWHERE)
SECRET = 3
"""Words of a secret."""
SECRETS = math.perm(len(SECRET_WORDS), SECRET)
OF_PROBES = 10
"""Of so many secrets one is a probe's."""
PROBES = SECRETS // OF_PROBES
DOCUMENTS = PROBES * (OF_PROBES - 1) // MOST_NEEDLES
"""Documents of one seed: each of them has `MOST_NEEDLES` secrets to itself."""


@dataclass(frozen=True)
class Needle:
    """Something hidden.

    Attributes:
        sentence: what hides it.
        question: what asks for it, to the word before the answer.
        answer: the words, with blanks between them.
    """

    sentence: str
    question: str
    answer: str


def documents(seed: int, words: tuple[int, int]) -> Items[str]:
    """Texts of both kinds, of about `words[0]` to `words[1]` words."""

    def make(number: int) -> str:
        key = (seed, "retrieval", number)
        kind: Kind = ("passkey", "needle")[number_below(2, *key, "kind")]
        length = words[0] + number_below(words[1] - words[0] + 1, *key, "length")
        most = min(MOST_NEEDLES, max(1, length // WORDS_A_NEEDLE))
        count = 1 if kind == "passkey" or most == 1 else 2 + number_below(most - 1, *key, "needles")
        needles = _needles(kind, [_secret(number * MOST_NEEDLES + i, seed) for i in range(count)], *key)
        asked = [f"{n.question} {n.answer}." for n in drawn(needles, count, *key, "asked")]
        fixed = [OPENINGS[kind], *(needle.sentence for needle in needles), *asked]
        left = length - sum(len(text.split()) for text in fixed)
        filler: list[str] = []
        while left > 0:
            filler.append(_filler(len(filler), *key))
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
    _sentences: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        count = 1 if self.kind == "passkey" else MOST_NEEDLES
        first = self.number * count
        self._needles = _needles(
            self.kind, [_probe_secret(first + i, self.seed) for i in range(count)], *self._key
        )

    @property
    def _key(self) -> tuple[int | str, ...]:
        return (self.seed, "probe", self.kind, self.number)

    @property
    def answer(self) -> str:
        """The words that are right."""
        return self._needles[0].answer

    def prompt(self, sentences: int, depth: float) -> str:
        """The text up to where the answer follows, behind a blank.

        Args:
            sentences: how many of them lie around what is hidden.
            depth: the share of them before what is asked for: 0 at the beginning, 1 at the end.
        """
        while len(self._sentences) < sentences:
            self._sentences.append(_filler(len(self._sentences), *self._key))
        # Shares, so that the others keep their places in a longer text.
        shares = [number_below(1001, *self._key, "place", i) / 1000 for i in range(1, len(self._needles))]
        places = [math.floor(share * sentences + 0.5) for share in (depth, *shares)]
        hidden = _hidden(self._sentences[:sentences], self._needles, places)
        return _joined(self.kind, hidden, [self._needles[0].question])


def _filler(place: int, *key: int | str) -> str:
    """The sentence at a place: one of the few of this key."""
    return _sentence(*key, "sentence", number_below(DIFFERENT, *key, "filler", place))


@functools.lru_cache(maxsize=1024)
def _sentence(*key: int | str) -> str:
    left, shape = divmod(number_below(2**62, *key), len(SHAPES))
    form, places = SHAPES[shape]
    words = []
    for options in places:
        left, place = divmod(left, len(options))
        words.append(options[place])
    return form.format(*words)


def _needles(kind: Kind, secrets: Sequence[str], *key: int | str) -> list[Needle]:
    if kind == "passkey":
        question = "What is the pass key? The pass key is"
        return [Needle(PASSKEY.format(secret=secret), question, secret) for secret in secrets]
    things = drawn(THINGS, len(secrets), *key, "things")
    made = []
    for thing, secret in zip(things, secrets, strict=True):
        said = f"secret of the {chosen(COLOURS, *key, 'colour', thing)} {thing}"
        made.append(Needle(f"The {said} is {secret}.", f"What is the {said}? The {said} is", secret))
    return made


def _secret(place: int, seed: int) -> str:
    """The secret at a place among those of all documents."""
    tens, rest = divmod(place_of(place, PROBES * (OF_PROBES - 1), seed, "retrieval"), OF_PROBES - 1)
    return _words_of(tens * OF_PROBES + rest + 1)


def _probe_secret(place: int, seed: int) -> str:
    """The same among those of probes."""
    return _words_of(place_of(place % PROBES, PROBES, seed, "probe") * OF_PROBES)


def _words_of(rank: int) -> str:
    """The secret of a rank among all secrets: different words."""
    left, words = list(SECRET_WORDS), []
    for _ in range(SECRET):
        rank, place = divmod(rank, len(left))
        words.append(left.pop(place))
    return " ".join(words)


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
