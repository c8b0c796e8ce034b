"""Questions that a run was not trained on, whose answers a program can check.

A task is a corpus of the run's recipe that such a program made: its held-out conversations are the questions.
Or it is a program's name: if one corpus of the recipe is of that program, this corpus is meant, since another
seed would ask again what was trained on; else the program asks by a seed that no corpus has. A task of
`reasoning_gym` is called `reasoning_gym:TASK`; where no corpus is of it, its settings are as by default.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cupola.chat.conversation import from_json
from cupola.corpus import documents, gather
from cupola.corpus.generators import PROGRAMS, Marks, document_id, marks_of, program_of
from cupola.display import Display
from cupola.errors import InputError
from cupola.evaluate.tasks import Question
from cupola.recipe.corpora import GYM, Corpus
from cupola.recipe.schema import Recipe

CHECKED = (*(name for name, program in PROGRAMS.items() if program.check), f"{GYM}:TASK")
"""The programs whose answers can be checked, as a task calls them."""


@dataclass(frozen=True)
class Exam:
    """Questions of one task.

    Attributes:
        marks: how an answer is judged.
        source: where they come from, for people.
    """

    questions: list[Question]
    marks: Marks
    source: str


def find_exam(recipe: Recipe, sources: Mapping[str, Any], task: str, number: int, display: Display) -> Exam:
    """At most `number` questions of a task.

    Args:
        sources: what the run recorded of its sources; it is said if one has changed since.

    Raises:
        InputError: no such task; its answers can't be checked; nothing was held out of it.
    """
    name = _corpus_of(recipe, task)
    if name is not None:
        return _heldout(name, recipe.corpora[name], sources.get(name), number, display)
    seeds = {block.seed for corpus in recipe.corpora.values() for block in _with_fallbacks(corpus)}
    seed = next(seed for seed in itertools.count() if seed not in seeds)
    generate, _, kind = task.partition(":")
    corpus = Corpus.model_validate({"generate": generate, "task": kind or None, "seed": seed})
    return _asked(corpus, task, number)


def _asked(corpus: Corpus, task: str, number: int) -> Exam:
    """The first questions of a program."""
    program, marks = program_of(corpus), marks_of(corpus)
    assert program is not None, "a program that can check answers"
    assert marks is not None, "a program that can check answers"
    items = program.items(corpus.seed, [])
    places = range(number if items.size is None else min(number, items.size))
    name = str(corpus.generate)
    asked = []
    for place in places:
        question, answer, *_ = items.make(place)
        asked.append(Question(question, answer, document_id(name, place)))
    return Exam(asked, marks, f"{task}, seed {corpus.seed}")


def _corpus_of(recipe: Recipe, task: str) -> str | None:
    """The corpus that a task means; None: the program itself."""
    if task in recipe.corpora:
        _refuse_unchecked(task, recipe.corpora[task])
        return task
    if task not in CHECKED and not (task.startswith(f"{GYM}:") and task != f"{GYM}:"):
        raise InputError(
            f"{task} is no corpus of this run, and no program that can check answers ({', '.join(CHECKED)})"
        )
    own = [
        name
        for name, corpus in recipe.corpora.items()
        if _called(corpus) == task and corpus.holds() == "chat"  # nothing is asked of pairs of answers
    ]
    if len(own) > 1:
        raise InputError(f"{task} made several corpora of this run; name one of {', '.join(own)}")
    return own[0] if own else None


def _called(corpus: Corpus) -> str | None:
    """A corpus's program, as a task calls it."""
    return f"{GYM}:{corpus.task}" if corpus.generate == GYM else corpus.generate


def _refuse_unchecked(name: str, corpus: Corpus) -> None:
    """Refuse a corpus that is not of conversations of a program that can check answers."""
    if _called(corpus) not in CHECKED and corpus.generate != GYM:
        raise InputError(f"corpus {name} is of no program that can check answers ({', '.join(CHECKED)})")
    if corpus.holds() != "chat":
        raise InputError(f"corpus {name} holds {corpus.holds()}, and questions are taken from conversations")


def _with_fallbacks(corpus: Corpus | None) -> Iterator[Corpus]:
    while corpus is not None:
        yield corpus
        corpus = corpus.fallback


def _heldout(name: str, corpus: Corpus, recorded: Any, number: int, display: Display) -> Exam:
    marks = marks_of(corpus)
    assert marks is not None, "held by _refuse_unchecked"
    gathered = gather(name, corpus, display)
    if gathered.facts["taken"]["fallback"]:
        raise InputError(f"corpus {name} was taken from a fallback, whose answers no program can check")
    if recorded and _digest(recorded) != _digest(gathered.facts):
        display.warn(
            f"corpus {name} has changed since this run: what is held out now is not what it was, and the"
            " model may have been trained on it"
        )
    found = []
    for document in itertools.islice(documents(gathered.path, "heldout"), number):
        question, answer, *_ = from_json(document.text).messages
        found.append(Question(question.content, answer.content, document.id))
    if not found:
        raise InputError(f"corpus {name} holds nothing out, so it has no question that was not trained on")
    return Exam(found, marks, f"held-out questions of {name}")


def _digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of a source's held-out documents."""
    return str(facts["files"]["heldout.parquet"]["sha256"])
