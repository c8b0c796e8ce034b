"""YAML that remembers where each value stands, so that every later error can say file and line.

Read as YAML 1.2 (core schema), which is what people expect: `3e-4` is a number, `off` and `no` are text,
`010` is ten. `100_000` is accepted as well. Refused: a key twice in one mapping, tags, keys that are not
plain values, aliases that contain themselves.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cupola.errors import InputError

Key = str | int
LONGEST_QUOTED = 60

KINDS = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9][0-9_]{0,40}|0x[0-9a-fA-F]+|0o[0-7]+")),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")),
    ("float", re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader's scanner and parser, with none of YAML 1.1's implicit types."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as the base class has it)


@dataclass(frozen=True)
class Node:
    """A value of a recipe and where it was written.

    `value` is a mapping of text to nodes, a list of nodes, or a plain scalar. `where` is `FILE:LINE` or
    `--set KEY=VALUE`; relative paths in it resolve against `folder`.
    """

    value: Any
    where: str
    folder: Path

    def plain(self) -> Any:
        """The value without locations; keys set to null are left out, as if never written."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items() if node.value is not None}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def nearest(self, path: Sequence[Key]) -> "Node":
        """The node at a path, or the innermost one around it."""
        node = self
        for key in path:
            inside = node.value if isinstance(node.value, dict) else {}
            if isinstance(node.value, list):
                inside = dict(enumerate(node.value))
            if key not in inside:
                break
            node = inside[key]
        return node


def dotted(path: Sequence[Key]) -> str:
    """`("stages", "pretrain", "carry", 0)` -> `stages.pretrain.carry[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def is_text(argument: str) -> bool:
    """Was an argument of the command line UTF-8? (Python keeps other bytes as lone surrogates.)"""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def cut(text: str) -> str:
    """As much of what somebody wrote as a message has room for."""
    return text if len(text) <= LONGEST_QUOTED else f"{text[: LONGEST_QUOTED - 3]}..."


def read_document(path: Path, what: str = "a recipe", like: str = "name: ...") -> Node:
    """Read a YAML file that holds one mapping.

    Args:
        what, like: what it is and how it begins, for messages.

    Raises:
        InputError: with file and line: missing, a folder, not text, not YAML, empty, not a mapping.
    """
    name = shown(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); {what} is YAML") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    node = _parse(text, name, path.resolve().parent)
    if node.value is None:
        raise InputError(f"{name}: is empty; {what} is a YAML mapping")
    if not isinstance(node.value, dict):
        raise InputError(f"{node.where}: {what} is a YAML mapping (`{like}`), not {_kind(node.value)}")
    return node


def read_value(text: str, where: str, folder: Path) -> Node:
    """Read the VALUE of `--set KEY=VALUE`; text that only YAML's punctuation spoils (`*.md`) is taken as is.

    Raises:
        InputError: it begins a list, mapping or quoted text that is not YAML.
    """
    try:
        return _parse(text, where, folder, lines=False)
    except InputError:
        if text.lstrip()[:1] in tuple("[{\"'"):
            raise
        return Node(text, where, folder)


def read_plain(text: str) -> Any:
    """YAML that a program wrote or ships, as plain values: ten times as fast, and without places.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def shown(path: Path) -> str:
    """A path as messages show it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _parse(text: str, name: str, folder: Path, lines: bool = True) -> Node:
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        if root is None:
            return Node(None, name, folder)
        return _Converter(name, folder, lines).convert(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if lines and mark else name
        context = f" {error.context}" if error.context else ""
        raise InputError(f"{where}: is not YAML: {error.problem}{context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{name}: is nested too deeply") from None


class _Converter:
    """Turns yaml's nodes into ours; an alias gives the node that its anchor gave."""

    def __init__(self, name: str, folder: Path, lines: bool) -> None:
        self.name, self.folder, self.lines = name, folder, lines
        self.open: set[int] = set()

    def where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def convert(self, node: yaml.Node, key: yaml.Node | None = None) -> Node:
        """Convert a node; a value is located where its key stands."""
        where = self.where(key or node)
        if id(node) in self.open:
            raise InputError(f"{where}: an alias contains itself")
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node), where, self.folder)
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise InputError(f"{where}: tags such as {node.tag} have no meaning in a recipe")
        self.open.add(id(node))
        value: Any
        if isinstance(node, yaml.SequenceNode):
            value = [self.convert(item) for item in node.value]
        else:
            value = self._mapping(node)
        self.open.remove(id(node))
        return Node(value, where, self.folder)

    def _mapping(self, node: yaml.Node) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{self.where(key)}: a key is a plain word, not {_kind(key.value)}")
            if key.value in result:
                first = result[key.value].where.rpartition(":")[2]
                hint = f" (first on line {first})" if self.lines else ""
                raise InputError(f"{self.where(key)}: {key.value}: is written twice{hint}")
            result[key.value] = self.convert(value, key)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag != "tag:yaml.org,2002:str":
            raise InputError(f"{self.where(node)}: tags such as {node.tag} have no meaning in a recipe")
        text: str = node.value
        if node.style is not None:  # quoted, or a block of text
            return text
        kind = next((kind for kind, pattern in KINDS if pattern.fullmatch(text)), "str")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            digits = text.replace("_", "")
            return int(digits, {"0x": 16, "0o": 8}.get(digits[:2], 10))
        if kind == "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else cut(repr(value))
