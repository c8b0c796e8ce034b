"""Tasks of `reasoning_gym` (extra `reasoning-gym`): some ninety programs that ask puzzles, sums, logic and
games, each with a scorer of its own (Stojanovski et al., "Reasoning Gym", 2025).

Questions and answers are the package's, save newlines at their ends. An item is made by its number, and made
again when an answer to it is scored, so nothing but its number has to be kept. Tasks for which that fails are
refused by name: those whose items depend on more than seed and number, and those that know no answer.

The package counts its items on from the seed, so that neighbouring seeds would ask the same questions; here a
recipe's seed is spread by a hash first.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from cupola.characters import normalise_characters
from cupola.corpus.generators.harmless import is_harmless_formula, is_harmless_literal, is_harmless_sum
from cupola.corpus.generators.items import Facts, Items, Turns, number_below
from cupola.errors import CupolaError, InputError
from cupola.recipe.structure import did_you_mean

PACKAGE = "reasoning-gym"
MISSING = "{package} is not installed (pip install 'cupola[{package}]')"
SEEDS = 2**31
SIZE = 1_000_000
"""Items that a data set is said to have: more than anybody asks for."""
KEPT = 1024
"""Items that are kept for the next answer to the same question."""

_UNREPEATABLE = "its items differ from one process to the next"
_UNANSWERED = "it gives no answer with its questions"
REFUSED = {
    "composite": "mixtures are a stage's `data`; make one corpus of each task",
    "acre": _UNREPEATABLE,
    "boxnet": _UNANSWERED,
    "codeio": _UNREPEATABLE,
    "graph_color": _UNANSWERED,
    "intermediate_integration": _UNREPEATABLE,
    "isomorphic_strings": _UNREPEATABLE,
    "knight_swap": _UNREPEATABLE,
    "list_functions": _UNREPEATABLE,
    "polynomial_multiplication": _UNREPEATABLE,
    "propositional_logic": _UNANSWERED,
    "ransom_note": _UNREPEATABLE,
    "rubiks_cube": _UNANSWERED,
    "rush_hour": _UNANSWERED,
    "word_ladder": _UNREPEATABLE,
}
"""Tasks that can't be had, and why."""
EVALUATED = {
    "binary_matrix": is_harmless_literal,
    "countdown": is_harmless_sum,
    "n_queens": is_harmless_literal,
    "puzzle24": is_harmless_sum,
    "simple_integration": is_harmless_formula,
    "spiral_matrix": is_harmless_literal,
    "string_insertion": is_harmless_literal,
}
"""Tasks whose scorers evaluate an answer, and which answers they are given."""
BESIDE = {"seed": "seed", "size": "items"}
"""What the package has among a task's settings, and the key of a corpus that says it."""


class Gym:
    """One task with its settings.

    Args:
        task: its name in the package.
        settings: those of the task's own configuration that are not as by default.
    """

    def __init__(self, task: str, settings: Mapping[str, Any]) -> None:
        self.task, self.settings = task, dict(settings)
        self.entry = lru_cache(KEPT)(self._entry)
        self.data = lru_cache(1)(self._data)

    def items(self, seed: int, facts: Sequence[Facts]) -> Items[Turns]:
        """The task's items.

        Raises:
            InputError: no such task, or none that can be had; settings that it refuses.
        """
        self.data(seed)

        def make(number: int) -> Turns:
            entry = self.entry(seed, number)
            return [_as_kept(entry["question"]), _as_kept(entry["answer"])]

        return Items(None, make)

    def score(self, seed: int, number: int, question: str, answer: str) -> float:
        """What the task's own scorer gives an answer to an item, 0 to 1; blanks at its ends don't count.

        An answer that the scorer can't read, or must not be given, is scored as an empty one, or 0.

        Raises:
            CupolaError: the item of that number asks something else.
        """
        entry, data = self.entry(seed, number), self.data(seed)
        if _as_kept(entry["question"]) != question:
            raise CupolaError(
                f"reasoning_gym {self.task}: item {number} asks something else now than when it was made;"
                f" was it made by this version of {PACKAGE}?"
            )
        answer = answer.strip()
        if answer == entry["answer"].strip():
            answer = entry["answer"]
        elif self.task in EVALUATED and not EVALUATED[self.task](answer):
            answer = ""
        try:
            return min(max(float(data.score_answer(answer, entry)), 0.0), 1.0)
        except Exception:  # some scorers fail at what no one would write but a model
            return 0.0

    def _entry(self, seed: int, number: int) -> Any:
        try:
            return self.data(seed)[number]
        except Exception as error:  # for some settings no puzzle is found
            why = _one_line(error)
            raise InputError(
                f"reasoning_gym {self.task}: item {number} can't be made by its settings ({why})"
            ) from None

    def _data(self, seed: int) -> Any:
        kind, config = self._kinds
        settings = self._checked_settings()
        own = number_below(SEEDS, seed, "reasoning_gym", self.task)
        try:
            return kind(config=config(**settings, seed=own, size=SIZE))
        except Exception as error:  # assertions, mostly; also what comparing a text with a number raises
            raise InputError(f"reasoning_gym {self.task} refuses its settings ({_one_line(error)})") from None

    @cached_property
    def _kinds(self) -> tuple[Any, Any]:
        """The classes of the task's data set and of its configuration."""
        try:
            import reasoning_gym.factory
        except ModuleNotFoundError:
            raise InputError(MISSING.format(package=PACKAGE)) from None
        known = reasoning_gym.factory.DATASETS
        if self.task in REFUSED:
            raise InputError(f"reasoning_gym {self.task} can't be had: {REFUSED[self.task]}")
        if self.task not in known:
            hint = _hint(self.task, sorted(set(known) - set(REFUSED)))
            raise InputError(f"reasoning_gym has no task {self.task}; {hint}")
        return known[self.task]

    def _checked_settings(self) -> dict[str, Any]:
        """The settings, lists as tuples where a tuple is asked for."""
        fields = {field.name: field.default for field in dataclasses.fields(self._kinds[1])}
        found = {}
        for name, value in self.settings.items():
            if name in BESIDE:
                raise InputError(
                    f"reasoning_gym {self.task}: {name} is no setting; the corpus has its own {BESIDE[name]}"
                )
            if name not in fields:
                hint = _hint(name, [field for field in fields if field not in BESIDE])
                raise InputError(f"reasoning_gym {self.task} has no setting {name}; {hint}")
            as_tuple = isinstance(value, list) and isinstance(fields[name], tuple)
            found[name] = tuple(value) if as_tuple else value
        return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _hint(word: str, known: list[str]) -> str:
    close = did_you_mean(word, known)
    return f"did you mean {close}?" if close else f"there are {', '.join(known)}"


def _as_kept(text: str) -> str:
    """As it stands in a conversation."""
    return normalise_characters(text).strip("\n")
