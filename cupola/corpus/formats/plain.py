"""Formats that are nearly text: reStructuredText, GNU Info, fortunes, dictd dictionaries.

Each function takes the decoded file and gives text; what they drop is markup and navigation, never words
of the text itself.
"""

import re

_RST_SIGNS = re.compile(r"^\.\. [\w-]+::|:[a-z:]+:`[^`]+`|^\.\. _[^:\n]+:", re.M)
_RST_DROPPED_NAMES = (
    "index|module|currentmodule|py:\\w*module|highlight|toctree|contents|meta|image|figure|raw|include"
    "|literalinclude|only|ifconfig|rubric|default-role|role|tabularcolumns|sectionauthor|moduleauthor"
    "|automodule|autoclass|autofunction|autosummary|plot|testsetup|testcleanup"
)
# A comment (two dots and no directive), a target, or a dropped directive; each with its indented body.
_RST_DROPPED = re.compile(
    rf"^(?P<indent>[ \t]*)\.\. (?:_[^\n]*:|(?:{_RST_DROPPED_NAMES})::|(?![\w:|\[-]+::)(?!\[)(?!\|)[^\n]*)"
    r"[^\n]*\n(?:(?P=indent)[ \t]+[^\n]*\n|[ \t]*\n(?=(?P=indent)[ \t]+\S))*",
    re.M,
)
_RST_BLOCK = re.compile(
    r"^([ \t]*)\.\. (?:code-block|code|sourcecode|console|parsed-literal|math)::[^\n]*\n", re.M
)
_RST_OPTION = re.compile(r"^[ \t]+:[\w-]+:(?:[ \t][^\n]*)?\n(?=[ \t]*\n|[ \t]+:)", re.M)
_RST_ADMONITION = re.compile(r"^([ \t]*)\.\. ([a-z]+)::[ \t]*", re.M)
_RST_DESCRIBED = re.compile(r"^([ \t]*)\.\. [\w:-]+::[ \t]*", re.M)
_RST_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`(?:[~!])?([^`<]*?)\s*(?:<[^`]*>)?`")
_RST_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?")
_RST_NAMED = re.compile(r"`([^`\n]+)`__?")
_RST_RULE = re.compile(r"^([=\-~^\"'`#*+.:_])\1{2,}[ \t]*\n", re.M)
_ADMONITIONS = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "danger",
    "attention",
    "hint",
    "seealso",
    "error",
}

_INFO_HEADER = re.compile(r"^File: [^\n]*?Node: [^\n]*\n", re.M)
_INFO_MENU = re.compile(r"^\* Menu:\n(?:\n|\* [^\n]*\n|[ \t]+[^\n]*\n)*", re.M)
_INFO_TABLES = re.compile(r"\x1f\n(?:Tag Table|Indirect|Local Variables):.*", re.S)
_INFO_NOTE = re.compile(r"\*note ([^:]+)::", re.I)

_DICTIONARY_HEADER = re.compile(r"\A(?:00-?database\S*\n(?:[ \t][^\n]*\n|\n)*)+", re.I)


def reads_as_rst(text: str) -> bool:
    """Does a `.txt` file hold reStructuredText? (Three directives, roles or targets; one, if it is short.)"""
    return len(_RST_SIGNS.findall(text[:20_000])) >= (3 if len(text) > 3000 else 1)


def rst_to_text(text: str) -> str:
    """reStructuredText with roles, links and directives reduced to their words, code blocks kept."""
    text = _RST_DROPPED.sub("", text.replace("\r\n", "\n").expandtabs(8) + "\n")
    text = _RST_BLOCK.sub("", text)
    text = _RST_ADMONITION.sub(_admonition, text)
    text = _RST_DESCRIBED.sub(r"\1", text)
    text = _RST_OPTION.sub("", text)
    text = _RST_ROLE.sub(r"\1", text)
    text = _RST_LINK.sub(r"\1", text)
    text = re.sub(r"``([^`\n]+)``", r"\1", text)
    text = _RST_NAMED.sub(r"\1", text)
    text = _RST_RULE.sub("", text)
    return re.sub(r"::[ \t]*$", ":", text, flags=re.M)


def _admonition(found: re.Match[str]) -> str:
    if found.group(2) not in _ADMONITIONS:
        return found.group()
    return f"{found.group(1)}{'See also' if found.group(2) == 'seealso' else found.group(2).capitalize()}: "


def info_to_text(text: str) -> str:
    """GNU Info without node headers, menus and tag tables."""
    text = _INFO_TABLES.sub("", text.replace("\r\n", "\n"))
    text = _INFO_MENU.sub("", _INFO_HEADER.sub("", text.replace("\x1f", "")))
    return _INFO_NOTE.sub(r"\1", text)


def fortunes_to_text(text: str) -> str:
    """A file of fortunes as one text, a blank line between them."""
    return re.sub(r"\n%\n", "\n\n", text).removesuffix("%\n")


def dictionary_to_text(text: str) -> str:
    """A dictd dictionary without its notes about the database itself."""
    return _DICTIONARY_HEADER.sub("", text)
