"""`apt:`, `npm:`, `pypi:` the text that packages carry.

Without `files:`, everything that has a reader is taken but what is not the package's own English text:
copyright notices, changelogs, indexes, sources of generated pages, translations. With `files:`, exactly what
matches. The same text in several formats is taken once, from the format that reads best (Markdown, POD,
HTML, then the rest; `collecting.py` compares). For pypi a wheel is preferred; where it holds nothing that is
wanted (manuals are mostly in source archives only) the source archive is fetched.
"""

import re
from dataclasses import replace
from pathlib import Path

from cupola.corpus import archives, cutting
from cupola.corpus.formats import format_of, without_compression
from cupola.corpus.judgements import common_edges
from cupola.corpus.patterns import as_list
from cupola.corpus.reading import Entry, Portion, Reading, Rules, read_portion
from cupola.corpus.sources import Resolved, SourceUnavailable, Work, clients, licences
from cupola.corpus.sources.choosing import NOT_CHOSEN, Choice, rank
from cupola.display import Display
from cupola.recipe.corpora import Corpus

COMPRESSION_GUESS = 3
EDGED_FORMATS = ("html", "text")
EDGE_SAMPLE = 24
SINGLE_PAGE_BYTES = 200_000
"""A file this large comes last among its format, since it may be the whole manual on one page."""

NOTICES = {
    "apt": re.compile(r"usr/share/doc/[^/]+/copyright$"),
    "npm": re.compile(r"package\.json$"),
    "pypi": re.compile(r"[^/]+\.dist-info/METADATA$|PKG-INFO$"),
}
NOTES = {"apt": licences.deb_note, "npm": licences.npm_note, "pypi": licences.pypi_note}


class PackageSource:
    """The packages of one client that the block names."""

    local = False

    def __init__(self, client: str, corpus: Corpus) -> None:
        self.client, self.requests = client, as_list(getattr(corpus, client))
        self.choice = Choice(as_list(corpus.files), as_list(corpus.exclude))
        self.licence = corpus.licence
        self.label = f"{client} {', '.join(self.requests)}"
        self.packages: list[clients.Package] = []

    def resolve(self, display: Display, refresh: bool) -> Resolved:
        self.packages = [self._fetch(request, display, refresh) for request in self.requests]
        return Resolved(
            {"packages": [[package.name, package.version, package.sha256] for package in self.packages]},
            {f"{package.client}:{package.name}": package.version for package in self.packages},
        )

    def _fetch(self, request: str, display: Display, refresh: bool) -> clients.Package:
        alternatives = [part.strip() for part in request.split("|")]
        reasons = []
        for alternative in alternatives:
            try:
                if self.client == "pypi":
                    return self._wheel_or_source(alternative, display, refresh)
                return clients.fetch(self.client, alternative, display, refresh)
            except SourceUnavailable as error:
                reasons.append(str(error))
        raise SourceUnavailable("; ".join(reasons))

    def _wheel_or_source(self, request: str, display: Display, refresh: bool) -> clients.Package:
        try:
            wheel = clients.fetch("pypi", request, display, refresh)
        except SourceUnavailable as first:
            try:
                return clients.fetch("pypi", request, display, refresh, built=False)
            except SourceUnavailable as second:
                raise SourceUnavailable(f"{first}; source archive: {second}") from None
        if any(self.choice.skip_reason(name) is None for name in archives.zip_names(wheel.archive)):
            return wheel
        return clients.fetch("pypi", request, display, refresh, built=False)

    def open(self, workspace: Path, report: Reading) -> Work:
        entries = []
        for number, package in enumerate(self.packages):
            clients.check(package)
            root = workspace / str(number)
            entries += self._entries(package, root, report)
        return Work(cutting.portions(entries, report), sum(entry.size for entry in entries))

    def _entries(self, package: clients.Package, root: Path, report: Reading) -> list[Entry]:
        notice = NOTICES[self.client]
        source_archive = self.client == "pypi" and not package.archive.name.endswith(".whl")
        strip = self.client == "npm" or source_archive

        def inner(name: str) -> str:
            return name.partition("/")[2] if strip else name

        def wanted(name: str) -> bool:
            name = inner(name)
            if notice.search(name):
                return True
            reason = self.choice.skip_reason(name)
            if reason and reason != NOT_CHOSEN:
                report.skipped[reason] += 1
            return reason is None

        unpacked = archives.unpack(package.archive, root, wanted)
        top = unpacked[0].partition("/")[0] if strip and unpacked else ""
        source = f"{self.client}:{package.name}"
        licence = self.licence or NOTES[self.client](root / top, package.name)
        short = {inner(name): name for name in unpacked if self.choice.skip_reason(inner(name)) is None}
        sizes = {name: _text_size(root / member) for name, member in short.items()}
        for reason, names in self.choice.second_choices(sizes):
            report.skipped.update([reason] * len(names))
            for name in names:
                del short[name]
        entries = []
        for name, member in short.items():
            path, kind = root / member, format_of(name, self.choice.is_named(name))
            assert kind is not None, "`skip_reason` has said that there is a reader"
            entries.append(Entry(path, f"{source}/{name}", kind, source, licence, path.stat().st_size, True))
        edges = {kind: _edges_of([e for e in entries if e.format == kind]) for kind in EDGED_FORMATS}
        entries = [replace(entry, edges=edges.get(entry.format, frozenset())) for entry in entries]
        return sorted(entries, key=_order)


def _edges_of(entries: list[Entry]) -> frozenset[str]:
    """The banner and footer lines of a package's pages, from a sample of them."""
    chosen = entries[:: max(1, len(entries) // EDGE_SAMPLE)]
    rules = Rules(min_document_bytes=0, text_field="text")
    pages = [read_portion(Portion([entry], 0), rules).documents for entry in chosen]
    return common_edges(["".join(s.text for s in page[0].sections) for page in pages if page])


def _text_size(path: Path) -> int:
    """Bytes of text in a file, by a guess where it is compressed."""
    size = path.stat().st_size
    return size * COMPRESSION_GUESS if without_compression(path.name)[1] else size


def _order(entry: Entry) -> tuple[str, int, bool, str]:
    return entry.source, rank(entry.format), entry.size > SINGLE_PAGE_BYTES, entry.id
