"""`files:` the user's own text: files, folders (taken whole) and globs.

Order is by path, so that a copy of the folder elsewhere gives the same documents in the same order. A change
is noticed by path, size and modification time, never by reading everything again.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from cupola.corpus import cutting
from cupola.corpus.formats import format_of
from cupola.corpus.patterns import as_list, matches_any, names_ending
from cupola.corpus.reading import Entry, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work
from cupola.display import Display
from cupola.recipe.schema import Corpus

UNKNOWN_SHOWN = 5


class FilesSource:
    """The files that the block names."""

    local = True

    def __init__(self, corpus: Corpus) -> None:
        self.patterns = as_list(corpus.files)
        self.exclude = as_list(corpus.exclude)
        self.licence = corpus.licence or "not stated"
        self.label = f"files {', '.join(self.patterns)}"
        self.found: dict[Path, tuple[str, bool]] = {}

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        self.found = {}
        for pattern in self.patterns:
            for path, name, named in self._expand(pattern):
                known = self.found.get(path)
                self.found[path] = (known[0] if known else name, named or bool(known and known[1]))
        if not self.found:
            raise SourceUnavailable(f"there is no such file (looked from {Path.cwd()})")
        self.found = dict(sorted(self.found.items(), key=lambda item: (item[1][0], str(item[0]))))
        inputs = []
        for path, (name, named) in self.found.items():
            status = path.stat() if path.exists() else None
            inputs.append([str(path), name, named, status and [status.st_size, status.st_mtime_ns]])
        return Resolved({"files": inputs}, {"files": str(len(inputs))})

    def _expand(self, pattern: str) -> Iterator[tuple[Path, str, bool]]:
        """(path, name for ids, does the pattern name this kind of file)"""
        full = os.path.abspath(os.path.expandvars(os.path.expanduser(pattern)))
        if os.path.isdir(full):
            yield from self._folder(Path(full), Path(full).parent)
        elif os.path.isfile(full):
            yield Path(full), Path(full).name, True
        else:
            root = _fixed_part(full)
            for match in sorted(glob.iglob(full, recursive=True)):
                if os.path.isfile(match):
                    yield Path(match), os.path.relpath(match, root), names_ending(pattern)
                elif not full.endswith(("**", "**/")):
                    yield from self._folder(Path(match), Path(root))

    def _folder(self, folder: Path, root: Path) -> Iterator[tuple[Path, str, bool]]:
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(parent, name)
                if not name.startswith(".") and path.is_file():
                    yield path, os.path.relpath(path, root), False

    def open(self, workspace: Path, report: Reading) -> Work:
        entries, unknown = [], []
        for path, (name, named) in self.found.items():
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
            size = path.stat().st_size if path.exists() else 0
            entries.append(Entry(path, name, kind, "files", self.licence, size))
        if unknown:
            shown = ", ".join(unknown[:UNKNOWN_SHOWN]) + (", ..." if len(unknown) > UNKNOWN_SHOWN else "")
            report.warnings.append(f"{len(unknown)} files of no known kind were skipped: {shown}")
        return Work(cutting.portions(entries, report), sum(entry.size for entry in entries))


def _fixed_part(pattern: str) -> str:
    """The folder in front of a glob's first wildcard."""
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return fixed
