"""Lists of words to copy, to reverse and to sort; each with a check of the answer.

A list has 2 to 6 different words out of `WORDS`, so no answer can be learnt by heart, and what is held out is
new. There is no end of items (over 10**13 lists); two that are the same are dropped as duplicates.
"""

from collections.abc import Callable, Sequence

from cupola.corpus.generators.items import Facts, Items, Turns, chosen, drawn, number_between
from cupola.errors import InputError

SHORTEST, LONGEST = 2, 6
_WORDS = """
apple arm arrow autumn bag ball bank basket bath beach bean bear bed bee bell bench bird blanket boat bone
book boot bottle bowl box branch bread brick bridge brush bucket butter button cake camel candle card
carpet cart castle cat chain chair cheese cherry church circle city clock cloth cloud coat coffee coin
corn cow cup curtain desk dog door dress drum duck eagle ear egg engine eye farm feather fence field
finger fire fish flag flower fork forest fox frog garden gate glass glove goat grape grass hammer hat hill
honey horse house ice ink island jar key kitchen kite knife ladder lake lamp leaf lemon letter lion map
market milk mirror moon mountain mouse nail neck needle nest net night nut oak ocean onion orange oven owl
page paint paper park pear pen pencil pepper piano picture pig pillow plane plate pocket pond potato queen
rabbit rain ring river road roof room root rope rose sail salt sand school sea seed sheep shelf ship shirt
shoe silk silver snake snow soap sock spoon spring square stamp star stone storm street sugar summer sun
table tail tea tent thread tiger tool tower town train tree valley village wall watch water wave wheat
wheel whistle wind window wing winter wolf wood wool yard
"""
WORDS = tuple(_WORDS.split())

WORDINGS = {
    "copying": ("Repeat these words: {words}", "Copy this list: {words}", "Say these words again: {words}"),
    "reversing": (
        "Write these words in reverse order: {words}",
        "Reverse this list: {words}",
        "Say these words from the last to the first: {words}",
    ),
    "sorting": (
        "Sort these words alphabetically: {words}",
        "Put this list in alphabetical order: {words}",
        "Which order do these words have in a dictionary: {words}",
    ),
}
ANSWERS: dict[str, Callable[[list[str]], list[str]]] = {
    "copying": list,
    "reversing": lambda words: words[::-1],
    "sorting": sorted,
}


def word_lists(task: str, seed: int, facts: Sequence[Facts]) -> Items:
    """Items of one task: `copying`, `reversing` or `sorting`."""

    def make(number: int) -> Turns:
        length = number_between(SHORTEST, LONGEST, seed, task, "length", number)
        words = drawn(WORDS, length, seed, task, "words", number)
        question = chosen(WORDINGS[task], seed, task, "wording", *words).format(words=", ".join(words))
        return [question, _answer(task, question)]

    return Items(None, make)


def check(task: str, question: str, answer: str) -> bool:
    """Is this the answer to a question of the task? Blanks at its ends don't count.

    Raises:
        InputError: it is no question of this task.
    """
    return answer.strip() == _answer(task, question)


def mistake(question: str, answer: str) -> str:
    """The answer with two of its words in each other's place, always the same two."""
    words = answer.split(", ")
    first, second = drawn(range(len(words)), 2, "mistake", question)
    words[first], words[second] = words[second], words[first]
    return ", ".join(words)


def _answer(task: str, question: str) -> str:
    asked, colon, words = question.partition(": ")
    if not colon or f"{asked}: {{words}}" not in WORDINGS[task]:
        raise InputError(f"{task}: {question!r} is no question of this task")
    return ", ".join(ANSWERS[task](words.split(", ")))
