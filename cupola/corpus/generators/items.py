"""What the programs share: items by number, choices by key, answers that end where a sentence does.

Guarantees: whatever a program makes is a pure function of its seed, its facts and the item's number. Choices
are read off a BLAKE2b digest of a key, not off a generator of random numbers, so they are the same on every
version of Python, in any order and on any machine. Costs some 2 microseconds a choice.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from cupola.data.permutation import keys, permute

Turns = list[str]
"""A conversation: question, answer, question, answer."""
Facts = tuple[str, str]
"""A file that a program reads: its name, and its text as it stands."""
Choice = TypeVar("Choice")
Made = TypeVar("Made")

_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]%\"”’'][.!?])[)\"”’']*(?=\s+[A-Z0-9“\"(‘]|\s*$)")
_NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|esp|approx|incl|Mr|Dr|St|Mt|No|ca|c)|\b[A-Za-z])\.$")


@dataclass(frozen=True)
class Items(Generic[Made]):
    """What a program can make: conversations (`Turns`) or texts.

    Attributes:
        size: how many different items there are; None: more than anybody asks for.
        make: number of an item (0 <= number < size) -> the item.
        unasked: facts that no item asks for, by reason.
        usual: how many are made where the recipe does not say; None: all.
    """

    size: int | None
    make: Callable[[int], Made]
    unasked: Counter[str] = field(default_factory=Counter)
    usual: int | None = None


def chosen(options: Sequence[Choice], *key: int | str) -> Choice:
    """One of the options, the same for the same key."""
    return options[number_below(len(options), *key)]


def number_below(limit: int, *key: int | str) -> int:
    """A number from 0 to `limit` - 1, the same for the same key."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8, person=b"cupola items").digest()
    return int.from_bytes(digest, "big") % limit


def number_between(least: int, most: int, *key: int | str) -> int:
    """A number from `least` to `most`, the same for the same key."""
    return least + number_below(most - least + 1, *key)


def drawn(options: Sequence[Choice], count: int, *key: int | str) -> list[Choice]:
    """`count` different options in some order, the same for the same key."""
    left = list(options)
    return [left.pop(number_below(len(left), place, *key)) for place in range(count)]


def place_of(number: int, size: int, seed: int, program: str) -> int:
    """Where the seed's shuffle of `size` places puts a number."""
    shuffle = keys(seed, "generate", program, 0)[None]
    return int(permute(np.array([number]), np.array([size]), shuffle)[0])


def whole_sentences(text: str, longest: int) -> str | None:
    """As many of a text's first sentences as fit into `longest` characters; None: not even one does."""
    text = " ".join(text.split())
    ends = [
        found.end() for found in _SENTENCE_END.finditer(text) if not _NO_END.search(text[: found.start()])
    ]
    fitting = [end for end in ends if end <= longest]
    return text[: fitting[-1]] if fitting else None
