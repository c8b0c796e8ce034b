"""Sums of two numbers with two digits, to learn and to be rewarded for: `check` knows the right answer.

`addition` asks for the sum as people write it. `reversed_addition` writes digits one by one, and the sum from
its last digit on, in the order in which it is computed: the form of the task that small models learn within
minutes (Lee et al., "Teaching Arithmetic to Small Transformers", 2023), and whose digits no tokenizer joins.

Guarantees: each of the 4,095 pairs of numbers is asked once, in one order and one wording, so a sum that is
held out is not in the training text in any other form.
"""

import math
import re
from collections.abc import Sequence

from cupola.corpus.generators.items import Facts, Items, Turns, chosen, number_below, place_of
from cupola.errors import InputError

SMALLEST, NUMBERS = 10, 90
PAIRS = NUMBERS * (NUMBERS + 1) // 2
WORDINGS = (
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
)
REVERSED_WORDINGS = (
    "What is {a} + {b}, last digit first?",
    "Add {a} and {b}, last digit first.",
    "How much is {a} plus {b}, last digit first?",
)
REVERSED = "last digit first"
_NUMBER = re.compile(r"\d(?: ?\d)*")


def addition(seed: int, facts: Sequence[Facts]) -> Items:
    """What is 37 + 58? 95"""

    def make(number: int) -> Turns:
        a, b = _pair(place_of(number, PAIRS, seed, "addition"), seed)
        question = chosen(WORDINGS, seed, "wording", a, b).format(a=a, b=b)
        return [question, _answer(question)]

    return Items(PAIRS, make)


def reversed_addition(seed: int, facts: Sequence[Facts]) -> Items:
    """What is 3 7 + 5 8, last digit first? 5 9"""

    def make(number: int) -> Turns:
        a, b = _pair(place_of(number, PAIRS, seed, "reversed_addition"), seed)
        wording = chosen(REVERSED_WORDINGS, seed, "wording", a, b)
        question = wording.format(a=" ".join(str(a)), b=" ".join(str(b)))
        return [question, _answer(question)]

    return Items(PAIRS, make)


def check(question: str, answer: str) -> bool:
    """Is this the answer to a question of this module? Blanks at its ends don't count.

    Raises:
        InputError: it is no such question.
    """
    return answer.strip() == _answer(question)


def mistake(question: str, answer: str) -> str:
    """The answer with one of its digits wrong, always the same one."""
    places = [place for place, character in enumerate(answer) if character.isdigit()]
    place = chosen(places, "mistake", question)
    others = [digit for digit in "0123456789" if digit != answer[place]]
    return answer[:place] + chosen(others, "digit", question) + answer[place + 1 :]


def _pair(place: int, seed: int) -> tuple[int, int]:
    """The pair of numbers at a place among all pairs: the larger one's row, and the smaller one within it."""
    row = (math.isqrt(8 * place + 1) - 1) // 2
    a, b = SMALLEST + row, SMALLEST + place - row * (row + 1) // 2
    return (a, b) if number_below(2, seed, "order", a, b) else (b, a)


def _answer(question: str) -> str:
    numbers = [int(found.replace(" ", "")) for found in _NUMBER.findall(question)]
    if len(numbers) != 2:
        raise InputError(f"addition: {question!r} is no question for the sum of two numbers")
    total = str(sum(numbers))
    return " ".join(reversed(total)) if REVERSED in question else total
