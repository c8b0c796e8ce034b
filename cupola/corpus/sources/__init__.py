"""Where text comes from: one module for each kind of source.

A source first says what it would take (`resolve`: fetches packages where they are not kept yet, looks at
files, asks a hub), so that the cache can be asked before anything is read; then it opens its work
(`open`). What cannot be had at all is `SourceUnavailable`, on which the recipe's `fallback` is taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cupola.corpus.reading import Portion, Reading
from cupola.display import Display


class SourceUnavailable(Exception):
    """A source cannot be had here: no client, no network, no such package, no such file. One line."""


@dataclass(frozen=True)
class Resolved:
    """What a source would take.

    Attributes:
        inputs: JSON-able; equal inputs give equal text. Part of the cached text's address.
        versions: for people and the run's record.
    """

    inputs: Any
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The reading to be done: portions in a fixed order, and their cost in all (None: unknown)."""

    portions: Iterator[Portion]
    cost: int | None


class Source(Protocol):
    """What `gather` asks of a source."""

    label: str
    """For people: `apt git-doc, perl-doc`."""
    local: bool
    """`resolve` is quick and needs no network, so it is asked again at every call."""

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        """Raises SourceUnavailable."""

    def open(self, workspace: Path, report: Reading) -> Work:
        """Begin; `workspace` is an empty folder that vanishes afterwards, `report` takes what is skipped."""
