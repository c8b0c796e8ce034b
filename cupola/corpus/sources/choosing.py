"""Which files of a package are read.

Without patterns, everything that has a reader but what is not the package's own English text: notices,
changelogs, indexes, sources of generated pages, translations, and second formats of the same page. With
patterns, exactly what matches them.
"""

import re
from collections.abc import Iterator

from cupola.corpus.formats import format_of, without_compression
from cupola.corpus.patterns import matches_any, names_ending

NOT_CHOSEN = "not among `files`"
FORMAT_ORDER = ("jsonl", "parquet", "json", "markdown", "pod", "html", "rst", "text", "manual", "info")

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


class Choice:
    """The rules of one block: its `files` and `exclude`."""

    def __init__(self, patterns: list[str], exclude: list[str]) -> None:
        self.patterns, self.exclude = patterns, exclude

    def is_named(self, name: str) -> bool:
        return any(names_ending(pattern) and matches_any(name, [pattern]) for pattern in self.patterns)

    def skip_reason(self, name: str) -> str | None:
        if self.exclude and matches_any(name, self.exclude):
            return "excluded"
        if self.patterns:
            if not matches_any(name, self.patterns):
                return NOT_CHOSEN
            return None if format_of(name, self.is_named(name)) else "unknown kind of file"
        if format_of(name) is None:
            return "unknown kind of file"
        if format_of(name) == "manual":
            return None  # a page may well be named history
        if ".dist-info/" in name or _NOT_TEXT_FOLDERS.search(name) or _NOT_PROSE.search(name):
            return "notice, index or source of a generated page"
        return None

    def second_choices(self, sizes: dict[str, int]) -> Iterator[tuple[str, list[str]]]:
        """(reason, names) of what need not be read, among names and their bytes of text."""
        if self.patterns:
            return
        translated = _translations(list(sizes))
        yield "in another language", sorted(translated)
        left = {name: size for name, size in sizes.items() if name not in translated}
        yield "same name in another format", _other_formats(left)


def rank(kind: str) -> int:
    """The place of a format in `FORMAT_ORDER`; the better come first."""
    return FORMAT_ORDER.index(kind) if kind in FORMAT_ORDER else len(FORMAT_ORDER)


def _other_formats(sizes: dict[str, int]) -> list[str]:
    """Files that share folder and stem with a file of a better format that is not much smaller."""
    best: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: rank(format_of(name) or "")):
        best.setdefault(_stem(name), name)
    return [
        name
        for name, size in sizes.items()
        if format_of(best[_stem(name)]) != format_of(name) and 2 * sizes[best[_stem(name)]] > size
    ]


def _stem(name: str) -> str:
    base = without_compression(name)[0]
    return base.rpartition(".")[0] if "." in base.rpartition("/")[2] else base


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
