"""What one source holds out, no other source of the recipe may train on.

Each source decides by the hash of the text (`cupola.corpus.splitting`), but sources may have different
shares, and the smallest has at least one document held out. So where the same text is in two sources, it can
be held out in one and in the training text of the other. Here such documents (or sections of long ones) are
taken out of the training text, counted and said.

Guarantees: no document or section whose words are held out by any of the sources is left in the training
text of another that has the same document, or a beginning of it, nor a conversation or pair of answers that
begins with the same question; nothing is added to any text. Found once for a set of sources and kept in the
cache.
Costs: one pass over the training text, and 100 bytes of memory for each held-out document.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from cupola import storage
from cupola.chat.records import opening
from cupola.corpus.built import build_once
from cupola.corpus.documents import Document, DocumentWriter, documents, totals
from cupola.corpus.splitting import SECTION, cut_at_breaks, text_hash
from cupola.display import Display
from cupola.errors import InputError
from cupola.paths import cache_root

VERSION = 3
"""Raised whenever the same sources would be separated otherwise."""


def separate(gathered: Mapping[str, Path], display: Display, in_parts: bool = True) -> dict[str, Path]:
    """The folders of the sources, with that of each source replaced whose training text had to be cut.

    Args:
        gathered: source -> folder of `cupola.corpus.documents`.
        in_parts: long documents may lose a part; else (records) a document stays whole, or goes where one
            that begins with the same question is held out.
    """
    if len(gathered) < 2:
        return dict(gathered)
    hashes = {name: storage.read_manifest(path)["files"] for name, path in gathered.items()}
    key = storage.digest({"version": VERSION, "sources": hashes, "in_parts": in_parts})[:32]
    target = cache_root() / "separated" / key
    build_once(target, partial(_build, gathered, target, in_parts, display), display)
    dropped: dict[str, int] = storage.read_manifest(target)["dropped"]
    for name, number in dropped.items():
        if number:
            display.warn(f"{name}: {number} documents are held out by another source and are not trained on")
    return {name: target / name if dropped[name] else path for name, path in gathered.items()}


def _build(gathered: Mapping[str, Path], target: Path, in_parts: bool, display: Display) -> None:
    heldout = {_key(d.text, in_parts) for path in gathered.values() for d in documents(path, "heldout")}
    dropped: dict[str, int] = {}
    whole = sum(totals(path, "train")[1] for path in gathered.values())
    with (
        display.task("held-out text against the other sources", whole, "bytes") as task,
        storage.new_folder(target, {"dropped": dropped}) as aside,
    ):
        for name, path in gathered.items():
            left = dropped[name] = 0
            for document in documents(path, "train"):
                kept = _without(document, heldout, in_parts)
                dropped[name] += kept != [document]
                left += len(kept)
                task.advance(len(document.text.encode("utf-8")))
            if dropped[name] and not left:
                raise InputError(
                    f"corpora.{name}: all of its training text is held out by another source; leave it out,"
                    " or lower the share that the other one holds out"
                )
            if dropped[name]:
                _write(path, aside / name, heldout, in_parts)


def _key(text: str, in_parts: bool) -> int:
    """What a whole document is held out by: its text, or the question that a record begins with."""
    return text_hash(text if in_parts else opening(text))


def _without(document: Document, heldout: set[int], in_parts: bool) -> list[Document]:
    """The document, or what stands before, between and behind its parts that are held out."""
    if _key(document.text, in_parts) in heldout:
        return []
    for parts in _cuts(document) if in_parts else ():
        out = [text_hash(part) in heldout for part in parts]
        if any(out):
            runs = ("".join(parts[i] for i in run) for run in _stretches(out))
            return [replace(document, text=text, id=f"{document.id}/{n}") for n, text in enumerate(runs)]
    return [document]


def _cuts(document: Document) -> Iterator[list[str]]:
    """The document as it may have been cut where it is held out in part: to its end, or, if it is itself the
    beginning of a longer one, as if more text followed. Either way the parts join to the document."""
    text = document.text
    if len(text) > SECTION // 2:  # no part of a longer document is shorter, save its last
        yield list(cut_at_breaks(text, SECTION))
        parts, left = [], len(text)
        for part in cut_at_breaks(f"{text}\n\n" + "x" * 2 * SECTION, SECTION):
            if left > 0:
                parts.append(part[:left])
            left -= len(part)
        yield parts


def _stretches(out: list[bool]) -> Iterator[list[int]]:
    """The indices between those that are out."""
    for is_out, run in groupby(range(len(out)), key=out.__getitem__):
        if not is_out:
            yield list(run)


def _write(gathered: Path, folder: Path, heldout: set[int], in_parts: bool) -> None:
    """A copy of a gathered source without what is held out elsewhere; a gathered source itself."""
    facts = {key: value for key, value in storage.read_manifest(gathered).items() if key != "files"}
    with storage.new_folder(folder, facts) as aside:
        with DocumentWriter(aside / "train.parquet") as writer:
            for document in documents(gathered, "train"):
                for kept in _without(document, heldout, in_parts):
                    writer.write(kept)
        facts["documents"] = {**facts["documents"], "train": writer.documents}
        facts["bytes"] = {**facts["bytes"], "train": writer.bytes}
        with DocumentWriter(aside / "heldout.parquet") as writer:
            for document in documents(gathered, "heldout"):
                writer.write(document)
