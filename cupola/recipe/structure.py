"""How the blocks of a recipe nest, read off the schema: which key holds which block.

Merging needs it (blocks merge key by key, everything else is replaced whole), and so do the messages
(what may stand here, where an unknown key belongs).
"""

import difflib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cupola.recipe.document import Key
from cupola.recipe.schema import Recipe
from cupola.recipe.strict import Strict


@dataclass(frozen=True)
class Entries:
    """A mapping from names that the user chooses to blocks of one kind (`stages`, `corpora`)."""

    block: type[Strict]


Kind = type[Strict] | Entries | None
"""A block, a mapping of named blocks, or None: a value that is replaced whole."""


def kind_of(parent: Kind, key: Key) -> Kind:
    """What stands under a key of a block."""
    if isinstance(parent, Entries):
        return parent.block
    if parent is None or key not in parent.model_fields:
        return None
    return _kind(parent.model_fields[str(key)].annotation)


def kind_at(path: Sequence[Key]) -> Kind:
    """What stands at a path of a recipe."""
    kind: Kind = Recipe
    for key in path:
        kind = kind_of(kind, key)
    return kind


def _kind(annotation: Any) -> Kind:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict and _kind(arguments[1]) is not None:
        block = _kind(arguments[1])
        assert isinstance(block, type)
        return Entries(block)
    if typing.get_origin(annotation) in (dict, list, tuple):
        return None
    return next((kind for kind in map(_kind, arguments) if kind is not None), None)


def homes(key: str, kind: Kind = Recipe, path: tuple[str, ...] = ()) -> list[str]:
    """Every place of the schema where a key of that name may stand, such as `stages.NAME`."""
    if isinstance(kind, Entries):
        return homes(key, kind.block, (*path, "NAME"))
    if kind is None or path.count("fallback"):
        return []
    found = [".".join(path)] if key in kind.model_fields else []
    for name in kind.model_fields:
        found += homes(key, kind_of(kind, name), (*path, name))
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The closest of the known words, if any is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None
