"""Perl's documentation format to text (perlpod, perlpodspec): one line a paragraph, verbatim blocks kept."""

import re

_INNER = re.compile(r"([A-Z])<([^<>]*)>")
# C<< a->b >>: several brackets and spaces inside, so that the text may hold brackets.
_SPACED = [re.compile(rf"([A-Z])<{{{n}}}\s+(.*?)\s+>{{{n}}}(?!>)", re.S) for n in (4, 3, 2)]
_ENTITIES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "quot": '"', "amp": "&", "nbsp": " "}
_OPEN, _CLOSE = "\x01", "\x02"
_HIDDEN = {"X", "Z"}


def pod_to_text(source: str) -> str:
    """The text of a pod file; code outside of pod blocks is left out."""
    blocks: list[str] = []
    in_pod = False
    skipped_format: str | None = None
    for paragraph in re.split(r"\n[ \t]*\n", source.replace("\r\n", "\n")):
        paragraph = paragraph.strip("\n")
        found = re.match(r"=([a-zA-Z]\w*)[ \t]*(.*)", paragraph, re.S)
        if found:
            command, rest = found.group(1), " ".join(found.group(2).split())
            in_pod = command != "cut"
            if command == "begin":
                skipped_format = rest if not rest.startswith(("text", ":text")) else None
            elif command == "end":
                skipped_format = None
            elif skipped_format is None and (command.startswith("head") or command == "item") and rest:
                text = re.sub(r"^[*-]\s*", "", _inline(rest)) if command == "item" else _inline(rest)
                blocks.append(f"- {text}" if command == "item" and text else text)
        elif in_pod and skipped_format is None and paragraph.strip():
            literal = paragraph[0] in " \t"
            blocks.append(paragraph if literal else _inline(" ".join(paragraph.split())))
    return "\n\n".join(block for block in blocks if block.strip())


def _inline(text: str) -> str:
    for pattern in _SPACED:
        text = pattern.sub(_code, text)
    previous = None
    while previous != text:
        previous, text = text, _INNER.sub(_code, text)
    return text.replace(_OPEN, "<").replace(_CLOSE, ">")


def _code(found: re.Match[str]) -> str:
    code, content = found.groups()
    if code in _HIDDEN:
        return ""
    if code == "E":
        named = _ENTITIES.get(content)
        if named is None:
            number = re.fullmatch(r"(?:0x([0-9a-fA-F]+)|(\d+))", content)
            named = chr(int(number[1], 16) if number and number[1] else int(number[2])) if number else content
        content = named
    elif code == "L":
        label, bar, _ = content.partition("|")
        content = label if bar else content.replace("/", " ").strip(' "').replace('"', "")
    return content.replace("<", _OPEN).replace(">", _CLOSE)
