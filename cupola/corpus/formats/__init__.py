"""Which reader a file gets, by its name; and the readers, each from text to text.

A name may end in .gz, .zst, .bz2 or .xz on top of its format (.dz is gzip). What has no reader here is
skipped and counted, unless a pattern of the recipe names its ending (`files: "logs/*.log"`): then it is
plain text.
"""

import re

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz", ".dz": "gzip"}
ENDINGS = {
    "txt": "text",
    "text": "text",
    "md": "markdown",
    "markdown": "markdown",
    "rst": "rst",
    "html": "html",
    "htm": "html",
    "xhtml": "html",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pod": "pod",
    "info": "info",
    "dict": "dictionary",
}
ONLY_WHEN_NAMED = {"json": "json"}
"""JSON is mostly settings; it is read where a pattern asks for it."""

_MANUAL_PAGE = re.compile(r"(?:^|/)man/(?:[\w.@-]+/)?man\d\w*/[^/]+\.\d\w*$")
_FORTUNES = re.compile(r"(?:^|/)games/fortunes/[^/.]+$")
_INFO_PART = re.compile(r"\.info-\d+$")


def without_compression(name: str) -> tuple[str, str | None]:
    """`a.txt.gz` -> (`a.txt`, "gzip")."""
    for ending, kind in COMPRESSED.items():
        if name.lower().endswith(ending):
            return name[: -len(ending)], kind
    return name, None


def format_of(path: str, named: bool = False) -> str | None:
    """The format of a file, or None where there is no reader.

    Args:
        path: relative, with slashes.
        named: a pattern of the recipe names this kind of file, or the file itself.
    """
    base, _ = without_compression(path)
    ending = base.rpartition("/")[2].rpartition(".")[2].lower()
    if _MANUAL_PAGE.search(base):
        return "manual"
    if _FORTUNES.search(base):
        return "fortunes"
    if _INFO_PART.search(base):
        return "info"
    if ending in ENDINGS:
        return ENDINGS[ending]
    if named:
        return ONLY_WHEN_NAMED.get(ending, "text")
    return None
