"""What the cache holds of text: gathered sources and fetched packages, and whether they are whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.chat.conversation import from_json
from cupola.corpus.documents import Document, Split, documents, totals
from cupola.errors import CupolaError, InputError
from cupola.paths import cache_root
from cupola.storage import MANIFEST, read_manifest, verify


@dataclass(frozen=True)
class Held:
    """A folder of the cache.

    Attributes:
        kind: text (a gathered source) or fetched (a package's archive).
        name: the source or the package, for people.
        facts: the manifest's.
        error: what is wrong with it, or None.
    """

    path: Path
    kind: str
    name: str
    facts: dict[str, Any]
    error: str | None


def held(contents: bool) -> Iterator[Held]:
    """Every folder of text and every fetched package; names and sizes are checked, and contents if asked."""
    for kind, pattern in (("text", "text/*"), ("fetched", "fetched/*/*")):
        for path in sorted(cache_root().glob(pattern)):
            if path.name.startswith(".") or not (path / MANIFEST).exists():
                continue
            facts, error = {}, None
            try:
                facts = read_manifest(path)
                verify(path, contents)
            except CupolaError as problem:
                error = str(problem)
            package = " ".join(str(facts[key]) for key in ("client", "name", "version") if key in facts)
            name = facts.get("source") or package or path.name  # of a torn manifest only the folder's is left
            yield Held(path, kind, name, facts, error)


def spread(folder: Path, split: Split, number: int) -> list[Document]:
    """`number` documents at even distances through a split, so that the first package doesn't stand for all.

    Raises:
        InputError: the folder holds no gathered text.
    """
    if not (folder / f"{split}.parquet").exists():
        raise InputError(f"{folder}: holds no gathered text ({split}.parquet)")
    whole = totals(folder, split)[0]
    number = min(number, whole)
    wanted = {int((place + 0.5) * whole / number) for place in range(number)}
    return [document for place, document in enumerate(documents(folder, split)) if place in wanted]


def readable(folder: Path, document: Document) -> str:
    """A gathered document as people read it: a conversation as its turns, each behind its role."""
    if read_manifest(folder).get("format") != "chat":
        return document.text
    messages = from_json(document.text).messages
    return "\n".join(f"{message.role}: {message.content}" for message in messages)
