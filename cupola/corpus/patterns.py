"""Patterns of paths as shells write them: `*` and `?` within a folder, `**` across folders, `{a,b}` and
`[...]`.

A pattern without a slash is of file names, wherever they are (`*.md`); one with a slash is of the path from
the root of the package or folder (`data/*.txt`).
"""

import re
from functools import lru_cache


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    out, index, in_braces = [], 0, False
    while index < len(pattern):
        rest = pattern[index:]
        if rest.startswith("**/"):
            out.append("(?:.*/)?")
            index += 3
            continue
        if rest.startswith("**"):
            out.append(".*")
            index += 2
            continue
        character = rest[0]
        if character == "[" and "]" in rest[2:]:
            end = rest.index("]", 2)
            inside = rest[1:end].replace("\\", "\\\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
            index += end + 1
            continue
        if character == "{" and "}" in rest:
            in_braces = True
        piece = {"*": "[^/]*", "?": "[^/]", "{": "(?:" if in_braces else r"\{"}.get(
            character, re.escape(character)
        )
        if in_braces and character in ",}":
            piece = "|" if character == "," else ")"
            in_braces = character == ","
        out.append(piece)
        index += 1
    return re.compile("".join(out))


def matches(path: str, pattern: str) -> bool:
    """Does a relative path (with slashes) match a pattern?"""
    pattern = pattern.removeprefix("./")
    subject = path if "/" in pattern else path.rpartition("/")[2]
    return _compiled(pattern).fullmatch(subject) is not None


def matches_any(path: str, patterns: list[str]) -> bool:
    """Does a path match one of the patterns?"""
    return any(matches(path, pattern) for pattern in patterns)


def names_ending(pattern: str) -> bool:
    """Does a pattern name the kind of its files, as `*.log` does and `texts/*` does not?"""
    return re.search(r"\.[A-Za-z0-9]+(?:\.(?:gz|zst|bz2|xz|dz))?$|\}$", pattern) is not None


def as_list(value: str | list[str] | None) -> list[str]:
    """A setting that is one text, several or none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
