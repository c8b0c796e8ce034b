"""A fault of a recipe that a check finds."""

from typing import NamedTuple

from cupola.recipe.document import Key


class Problem(NamedTuple):
    """A key of the recipe and what is wrong with it."""

    path: tuple[Key, ...]
    message: str
