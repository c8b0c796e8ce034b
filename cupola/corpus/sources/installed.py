"""`python:` what the installed Python carries: real text that is always there, offline.

- documentation: the language reference that `help()` shows, manuals inside the standard library, and the
  descriptions of installed packages;
- docstrings: of the standard library and of the packages that Cupola stands on, parsed, never imported;
- code: the standard library's own source.

Only the packages that Cupola requires are read (with all that they require), not whatever else is installed,
so that installing a tool beside it doesn't change the corpus.
"""

import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from cupola.corpus import cutting
from cupola.corpus.patterns import as_list, matches_any
from cupola.corpus.reading import Entry, Portion, Reading
from cupola.corpus.sources import Resolved, Work, licences
from cupola.display import Display
from cupola.recipe.corpora import Corpus

PROJECT = "cupola"
PYTHON_LICENCE = "Python-2.0 (Python Software Foundation licence)"
_SKIPPED = re.compile(
    r"(?:^|/)(?:tests?|testing|idle_test|__pycache__|site-packages|dist-packages|_vendor|vendor|ensurepip"
    r"|_vendored_packages|generated)/|_pb2(?:_grpc)?\.py$|/test_[^/]*\.py$|/conftest\.py$"
)
_BADGES = re.compile(
    r"^[ \t]*(?:\[?!\[|<img|<p align|</p|<a href|</a|<div|</div|\.\. image::|\|[\w ]+\||\.\. \|).*\n?", re.M
)


class InstalledPython:
    """The parts that the block names."""

    local = True

    def __init__(self, corpus: Corpus) -> None:
        self.parts = as_list(corpus.python)  # type: ignore[arg-type]
        self.exclude = as_list(corpus.exclude)
        self.licence = corpus.licence
        self.label = f"python {', '.join(self.parts)}"

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        versions = {"python": sys.version.split()[0]}
        inputs: dict[str, object] = {"python": sys.version, "parts": self.parts}
        if self.parts != ["code"]:
            packages = {item.metadata["Name"]: item.version for item in required_distributions()}
            inputs["packages"] = [f"{name} {version}" for name, version in packages.items()]
            versions.update(packages)
        return Resolved(inputs, versions)

    def open(self, workspace: Path, report: Reading) -> Work:
        entries: list[Entry] = []
        ready: list[Portion] = []
        if "documentation" in self.parts:
            ready += list(self._documentation())
            entries += self._library("html", "*.html", "documentation")
        if "docstrings" in self.parts:
            entries += self._library("docstrings", "*.py", "docstrings")
            for item in required_distributions():
                entries += self._distribution(item)
        if "code" in self.parts:
            entries += self._library("code", "*.py", "code")
        entries = [entry for entry in entries if not matches_any(entry.id, self.exclude)]
        cost = sum(portion.cost for portion in ready) + sum(entry.size for entry in entries)

        def portions() -> Iterator[Portion]:
            yield from ready
            yield from cutting.portions(entries, report)

        return Work(portions(), cost)

    def _documentation(self) -> Iterator[Portion]:
        from pydoc_data.topics import topics

        yield self._ready("python:documentation", PYTHON_LICENCE, sorted(topics.items()))
        for item in required_distributions():
            name, metadata = item.metadata["Name"], item.read_text("METADATA") or ""
            note = licences.python_note(metadata, name)
            body = metadata.partition("\n\n")[2]
            yield self._ready("python:documentation", note, [(f"{name}/description", _BADGES.sub("", body))])

    def _ready(self, source: str, licence: str, texts: list[tuple[str, str]]) -> Portion:
        named = [(f"{source}/{name}", text) for name, text in texts]
        cost = sum(len(text) for _, text in texts)
        entry = Entry(Path(), source, "text", source, self.licence or licence, cost)
        return Portion([entry], cost, ready=named)

    def _library(self, kind: str, pattern: str, part: str) -> list[Entry]:
        root = Path(sysconfig.get_path("stdlib"))
        source, licence = f"python:{part}", self.licence or PYTHON_LICENCE
        entries = []
        for path in sorted(root.rglob(pattern)):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not _SKIPPED.search(name):
                entries.append(Entry(path, f"{source}/{name}", kind, source, licence, path.stat().st_size))
        return entries

    def _distribution(self, item: importlib.metadata.Distribution) -> list[Entry]:
        name = item.metadata["Name"]
        licence = self.licence or licences.python_note(item.read_text("METADATA") or "", name)
        source = f"python:docstrings:{name}"
        entries = []
        for file in sorted(item.files or [], key=str):
            path = Path(str(item.locate_file(file)))
            if (
                file.suffix == ".py"
                and ".." not in file.parts
                and not _SKIPPED.search(str(file))
                and path.is_file()
            ):
                entries.append(
                    Entry(path, f"{source}/{file}", "docstrings", source, licence, path.stat().st_size)
                )
        return entries


def required_distributions() -> list[importlib.metadata.Distribution]:
    """The installed packages that Cupola requires, directly or not; none where Cupola isn't installed."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [PROJECT]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in found[name].requires or []:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match and "extra ==" not in requirement.partition(";")[2]:
                waiting.append(match.group())
    found.pop(PROJECT, None)
    return [found[name] for name in sorted(found)]
