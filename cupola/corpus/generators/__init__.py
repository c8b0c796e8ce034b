"""Programs that make conversations, from nothing but a seed or from what a package or file says; and programs
that make texts.

A program of conversations is a function from a seed and its facts to `Items`, of which each is made by its
number alone. What it asks is asked once and in one wording, so that what is held out stands nowhere in the
training text in other words. Where an answer can be right or wrong whoever gives it, the program has a
`check` as well, which needs nothing but the question. Of a pair of answers (`format: preference`) the chosen
one is the program's, and the rejected one its `mistake`, or, where it makes none, what it answers to another
question. The tasks of `reasoning_gym` are programs as well, of which the recipe names one (`program_of`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cupola.corpus.generators import (
    addition,
    country_questions,
    definitions,
    gym,
    repetition,
    retrieval,
    word_lists,
)
from cupola.corpus.generators.items import Facts, Items, Turns
from cupola.recipe.corpora import GYM, Corpus

__all__ = [
    *("PROGRAMS", "TEXT_PROGRAMS", "VERSION", "Facts", "Items", "Marks", "Program", "Turns"),
    *("document_id", "marks_of", "program_of"),
]

Marks = Callable[[str, str, str], float]
"""Question, answer, and the id of the document that asks it -> how right it is, 0 to 1; 1 is right."""

VERSION = 1
"""Raised whenever a program makes something else of the same seed and facts: part of the text's address."""


@dataclass(frozen=True)
class Program:
    """A generator of conversations.

    Attributes:
        items: seed and facts -> what it can make.
        check: question and answer -> is it right? None: there is no telling.
        mistake: question and right answer -> one that is nearly right.
        reads: the format (`corpus.formats`) of the files that its facts are in; None: it needs none.
        facts: where they are taken from, unless the recipe names another source beside `generate`.
        score: seed, number of the item, its question, and an answer -> 0 to 1: what a program has in place of
            `check` that must know the item.
        requires: the package, of an extra of its name, that makes the items.
    """

    items: Callable[[int, Sequence[Facts]], Items[Turns]]
    check: Callable[[str, str], bool] | None = None
    mistake: Callable[[str, str], str] | None = None
    reads: str | None = None
    facts: Corpus | None = None
    score: Callable[[int, int, str, str], float] | None = None
    requires: str | None = None


PROGRAMS: dict[str, Program] = {
    "addition": Program(addition.addition, addition.check, addition.mistake),
    "reversed_addition": Program(addition.reversed_addition, addition.check, addition.mistake),
    **{
        task: Program(
            partial(word_lists.word_lists, task), partial(word_lists.check, task), word_lists.mistake
        )
        for task in word_lists.WORDINGS
    },
    "country_questions": Program(
        country_questions.country_questions, reads="json", facts=country_questions.FACTS
    ),
    "capitals": Program(country_questions.capitals, reads="json", facts=country_questions.FACTS),
    "definitions": Program(definitions.definitions, reads="dictionary", facts=definitions.FACTS),
}
"""By the name that a recipe calls it (`recipe.corpora.Generator`)."""

TEXT_PROGRAMS: dict[str, Callable[[int, tuple[int, int]], Items[str]]] = {
    "retrieval": retrieval.documents,
    "repetition": repetition.repetitions,
    "recall": repetition.recalls,
}
"""Seed, and the least and most words of a text -> what it can make; names as above
(`recipe.corpora.TEXT_GENERATORS`)."""


def program_of(corpus: Corpus) -> Program | None:
    """The program that makes a corpus of conversations; None: none does."""
    if corpus.generate == GYM:
        assert corpus.task is not None, "held by recipe.checks"
        task = gym.Gym(corpus.task, corpus.settings or {})
        return Program(task.items, score=task.score, requires=gym.PACKAGE)
    return PROGRAMS.get(corpus.generate) if corpus.generate else None


def marks_of(corpus: Corpus) -> Marks | None:
    """How answers to a corpus's questions are judged; None: no program made it, or none that can tell."""
    program = program_of(corpus)
    if program and (score := program.score):
        return lambda question, answer, id: score(corpus.seed, int(id.rpartition(":")[2]), question, answer)
    if program and (check := program.check):
        return lambda question, answer, id: float(check(question, answer))
    return None


def document_id(name: str, number: int) -> str:
    """Of what a program made, by which `marks_of` finds the item again."""
    return f"generate:{name}:{number}"
