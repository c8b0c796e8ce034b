"""`files:` the user's own text: files, folders (taken whole) and globs.

Order is by path, so that a copy of the folder elsewhere gives the same documents in the same order. A change
is noticed by path, size and modification time, never by reading everything again. Links are followed; each
file is read once, by whichever names it is reached, and a link to a folder above ends where it has been.
Paths are taken as they stand: `~` and variables are the recipe's to expand.
"""

import glob
import os
import re
import stat
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from cupola.corpus import cutting
from cupola.corpus.formats import format_of
from cupola.corpus.patterns import as_list, matches_any, names_ending
from cupola.corpus.reading import Entry, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work
from cupola.display import Display
from cupola.recipe.corpora import Corpus

UNKNOWN_SHOWN = 5
_ESCAPED = re.compile(r"\[([*?[])\]")
"""A wildcard that `glob.escape` made an ordinary character."""

Identity = tuple[int, int]
"""Device and inode: the same for every name of a file or folder."""


class _Found(NamedTuple):
    """A file; `name` is for ids, `named`: does a pattern name this kind of file?"""

    name: str
    path: Path
    named: bool
    status: os.stat_result


class FilesSource:
    """The files that the block names."""

    local = True

    def __init__(self, corpus: Corpus) -> None:
        self.patterns = as_list(corpus.files)
        self.exclude = as_list(corpus.exclude)
        self.licence = corpus.licence or "not stated"
        self.label = f"files {', '.join(self.patterns)}"
        self.found: list[_Found] = []

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        found: dict[Identity, _Found] = {}
        visited: set[Identity] = set()
        for pattern in self.patterns:
            for path, name, named in _expand(pattern, visited):
                status = _status(path)
                if status is None:
                    continue
                known = found.get(_identity(status), _Found(name, path, False, status))
                found[_identity(status)] = known._replace(named=known.named or named)
        if not found:
            raise SourceUnavailable(f"there is no such file (looked from {Path.cwd()})")
        self.found = sorted(found.values(), key=lambda file: (file.name, str(file.path)))
        inputs = [[str(path), name, named, _stamp(status)] for name, path, named, status in self.found]
        return Resolved({"files": inputs}, {"files": str(len(inputs))})

    def open(self, workspace: Path, report: Reading) -> Work:
        entries, unknown = [], []
        for name, path, named, status in self.found:
            name = Path(name).as_posix()
            if self.exclude and (
                matches_any(name, self.exclude) or matches_any(path.as_posix(), self.exclude)
            ):
                report.skipped["excluded"] += 1
                continue
            kind = format_of(name, named)
            if kind is None:
                report.skipped["unknown kind of file"] += 1
                unknown.append(name)
                continue
            entries.append(Entry(path, name, kind, "files", self.licence, status.st_size))
        if unknown:
            shown = ", ".join(unknown[:UNKNOWN_SHOWN]) + (", ..." if len(unknown) > UNKNOWN_SHOWN else "")
            report.warnings.append(f"{len(unknown)} files of no known kind were skipped: {shown}")
        return Work(cutting.portions(entries, report), sum(entry.size for entry in entries))


def stamps(folder: Path) -> list[list[object]]:
    """[path, size, modification time] of every file below a folder; equal as long as nothing changes."""
    found = ((path, _status(path)) for path in _files(folder, set()))
    return [[os.path.relpath(path, folder), *_stamp(status)] for path, status in found if status]


def _expand(pattern: str, visited: set[Identity]) -> Iterator[tuple[Path, str, bool]]:
    """(path, name for ids, does the pattern name this kind of file); folders in `visited` are passed over."""
    given = Path(os.path.abspath(pattern))
    if given.exists():
        root, matches, named = given.parent, iter([given]), True
    else:
        root, parts = _fixed_part(pattern)
        matches, named = _matches(root, parts), names_ending(pattern)
    for match in matches:
        if match.is_dir():
            yield from ((path, os.path.relpath(path, root), False) for path in _files(match, visited))
        else:
            yield match, os.path.relpath(match, root), named


def _fixed_part(pattern: str) -> tuple[Path, list[str]]:
    """The folder in front of a glob's first wildcard, and the names and wildcards from there on."""
    parts = Path(os.path.normpath(os.path.join(glob.escape(os.getcwd()), pattern))).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(_ESCAPED.sub("", part)), parts))
    return Path(*(_ESCAPED.sub(r"\1", part) for part in fixed)), list(parts[len(fixed) :])


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    """What a glob matches below a folder. (`glob` itself follows a link to a folder above without end.)"""
    if not parts or parts == ["**"]:
        yield folder
    elif parts[0] == "**":
        for inner, _ in _folders(folder, set()):
            yield from _matches(inner, parts[1:])
    else:
        for name in sorted(glob.glob(parts[0], root_dir=folder)):
            yield from _matches(folder / name, parts[1:])


def _files(folder: Path, visited: set[Identity]) -> Iterator[Path]:
    for parent, names in _folders(folder, visited):
        yield from (parent / name for name in sorted(names) if not name.startswith("."))


def _folders(top: Path, visited: set[Identity]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `top` on, with the names of its files, unless it was visited; hidden ones are not."""
    for parent, folders, names in os.walk(top, followlinks=True):
        identity = _identity(os.stat(parent))
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent), names


def _status(path: Path) -> os.stat_result | None:
    """The status of an ordinary file; None for anything else, and for a link to nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]
