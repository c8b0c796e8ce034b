"""Rewards of answers: functions by name, weighted and added up.

A user's function gets lists as long as there are answers and gives a number for each, as TRL's do:

    def brief(prompts: list[list[dict]], completions: list[str], answers: list[str]) -> list[float]:
        return [-len(text) / 100 for text in completions]

where `prompts` are messages with `role` and `content`, and `answers` the corpus's own.
"""

import contextlib
import importlib.util
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.errors import CupolaError, InputError
from cupola.generate.sampling import uniform
from cupola.recipe.alignment import BUILT_IN, FORMAT, LENGTH, STAGE, reward_fault
from cupola.recipe.variables import unescaped
from cupola.storage import file_sha256
from cupola.train.questions import Question, Questions

LARGEST = 1e9
"""A reward may have: advantages are fp32, and the squares of larger ones soon have no room in it."""


@dataclass(frozen=True)
class Given:
    """An answer of the policy.

    Attributes:
        finished: it ended by itself.
        place: what makes it different from every other of the run: (seed, number).
        tokens: as they were sampled, with the one that ended it.
    """

    source: Questions
    question: Question
    text: str
    finished: bool
    place: tuple[int, int]
    tokens: Sequence[int]


Reward = Callable[[Sequence[Given]], list[float]]


class Rewards:
    """The rewards of a stage.

    Args:
        weights: name -> weight; a name is one of `BUILT_IN`, `format:REGEX`, `length:TOKENS`,
            `path/to/file.py:function`, or of `models`.
        models: reward models, by the names that they have among the rewards (`train.scoring`).

    Raises:
        InputError: no such file or function.
    """

    def __init__(self, weights: Mapping[str, float], models: Mapping[str, Reward] | None = None) -> None:
        self.weights = dict(weights)
        self.functions = {name: (models or {}).get(name) or find(name) for name in weights}
        self.called = _called_shortly(list(weights))

    def of(self, answers: Sequence[Given]) -> tuple[list[float], dict[str, list[float]]]:
        """(the weighted sum of each answer, and every function's own by its short name).

        Raises:
            CupolaError: a function fails, or gives something that is no finite number; says for which answer.
        """
        parts = {name: _called(name, function, answers) for name, function in self.functions.items()}
        totals = [
            sum(self.weights[name] * values[index] for name, values in parts.items())
            for index in range(len(answers))
        ]
        return totals, {self.called[name]: values for name, values in parts.items()}


def _called_shortly(names: list[str]) -> dict[str, str]:
    """Functions of files go by their own names in the metrics, unless two have the same."""
    short = {name: name.rpartition(":")[2] if _in_file(name) else name for name in names}
    many = Counter(short.values())
    return {name: own if many[own] == 1 else name for name, own in short.items()}


def identity(weights: Mapping[str, float]) -> list[list[Any]]:
    """What the rewards are, wherever their files lie: names, weights, and the SHA-256 of a function's file.

    What a reward model is the key of its stage says.

    Raises:
        InputError: as `Rewards`.
    """
    return [_identity(name, weight) for name, weight in weights.items()]


def _identity(name: str, weight: float) -> list[Any]:
    if not name.startswith(STAGE):
        find(name)
    if not _in_file(name):
        return [name, weight]
    return [name.rpartition(":")[2], weight, file_sha256(_file(name))]


def _in_file(name: str) -> bool:
    """Is it a user's function?"""
    return name not in BUILT_IN and not name.startswith((STAGE, *_WITH_ARGUMENT))


def find(name: str) -> Reward:
    """The function of a name.

    Raises:
        InputError: there is none.
    """
    if fault := reward_fault(name):
        raise InputError(f"rewards: {fault}")
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for kind, make in _WITH_ARGUMENT.items():
        if name.startswith(kind):
            return make(name.removeprefix(kind))
    file, function = _file(name), name.rpartition(":")[2]
    if not file.is_file():
        raise InputError(f"rewards: {file}: no such file")
    spec = importlib.util.spec_from_file_location(f"rewards_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function)
    except AttributeError:
        raise InputError(f"rewards: {file} has no function {function}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"rewards: {file} can't be run ({type(error).__name__}: {error})") from error
    _refuse_other_arguments(found, f"{file}:{function}")
    return lambda answers: found(
        [[vars(message) for message in answer.question.messages] for answer in answers],
        [answer.text for answer in answers],
        [answer.question.answer for answer in answers],
    )


def _refuse_other_arguments(found: Any, name: str) -> None:
    """Before the stages in front of it are trained."""
    with contextlib.suppress(ValueError):  # what is written in C may not say what it takes
        try:
            inspect.signature(found).bind([], [], [])
        except TypeError as error:
            raise InputError(
                f"rewards: {name} has to be a function of (prompts, completions, answers): {error}"
            ) from error


def _file(name: str) -> Path:
    """The file of a user's function; a recipe writes `$` in paths twice."""
    return Path(str(unescaped(name.rpartition(":")[0])))


def _called(name: str, function: Reward, answers: Sequence[Given]) -> list[float]:
    try:
        values = list(function(answers))
    except CupolaError:
        raise
    except (Exception, SystemExit) as error:
        raise CupolaError(
            f"rewards: {name} failed with {type(error).__name__}: {error}; what was saved is whole, and the"
            " same command goes on from it"
        ) from error
    if len(values) != len(answers):
        raise CupolaError(f"rewards: {name} gave {len(values)} values for {len(answers)} answers")
    return [_number(name, value, answer) for value, answer in zip(values, answers, strict=True)]


def _number(name: str, value: Any, answer: Given) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise CupolaError(
            f"rewards: {name} gave {value!r} for the answer {answer.text[:80]!r}; give a number of at most"
            f" {LARGEST:g}"
        )
    return number


def _check(answers: Sequence[Given]) -> list[float]:
    return [answer.source.score(answer.question, answer.text) for answer in answers]


def _finished(answers: Sequence[Given]) -> list[float]:
    return [float(answer.finished) for answer in answers]


def _random(answers: Sequence[Given]) -> list[float]:
    """0 or 1, whatever the answer: a control from which nothing can be learnt."""
    return [float(uniform(answer.place[0], answer.place[1], 0) < 0.5) for answer in answers]


def _format(expression: str) -> Reward:
    """1 where the whole answer matches, blanks at its ends aside; a dot is any character, newlines too."""
    form = re.compile(expression, re.DOTALL)
    return lambda answers: [float(form.fullmatch(answer.text.strip()) is not None) for answer in answers]


def _length(number: str) -> Reward:
    """1 for an answer of no tokens, falling evenly to 0 at a number of them; the one that ends it counts."""
    return lambda answers: [max(0.0, 1 - len(answer.tokens) / int(number)) for answer in answers]


_WITH_ARGUMENT: dict[str, Callable[[str], Reward]] = {FORMAT: _format, LENGTH: _length}
_BUILT_IN: dict[str, Reward] = {"check": _check, "finished": _finished, "random": _random}
