"""Programs that make conversations, from nothing but a seed or from what a package or file says; and programs
that make texts.

A program of conversations is a function from a seed and its facts to `Items`, of which each is made by its
number alone. What it asks is asked once and in one wording, so that what is held out stands nowhere in the
training text in other words. Where an answer can be right or wrong whoever gives it, the program has a
`check` as well, which needs nothing but the question. Of a pair of answers (`format: preference`) the chosen
one is the program's, and the rejected one its `mistake`, or, where it makes none, what it answers to another
question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cupola.corpus.generators import addition, country_questions, definitions, retrieval, word_lists
from cupola.corpus.generators.items import Facts, Items, Turns
from cupola.recipe.corpora import Corpus

__all__ = ["PROGRAMS", "TEXT_PROGRAMS", "VERSION", "Facts", "Items", "Program", "Turns"]

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
    """

    items: Callable[[int, Sequence[Facts]], Items[Turns]]
    check: Callable[[str, str], bool] | None = None
    mistake: Callable[[str, str], str] | None = None
    reads: str | None = None
    facts: Corpus | None = None


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
    "definitions": Program(definitions.definitions, reads="dictionary", facts=definitions.FACTS),
}
"""By the name that a recipe calls it (`recipe.corpora.Generator`)."""

TEXT_PROGRAMS: dict[str, Callable[[int, tuple[int, int]], Items[str]]] = {"retrieval": retrieval.documents}
"""Seed, and the least and most words of a text -> what it can make; names as above
(`recipe.corpora.TEXT_GENERATORS`)."""
