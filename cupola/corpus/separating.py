"""What one source holds out, no other source of the recipe may train on.

Each source decides by the hash of the text (`cupola.corpus.splitting`), but sources may have different
shares, and the smallest has at least one document held out. So where the same text is in two sources, it can
be held out in one and in the training text of the other. Here such documents (or sections of long ones) are
taken out of the training text, counted and said.

Guarantees: no document or section whose words are held out by any of the sources is left in the training
text of another. Found once for a set of sources and kept in the cache.
Costs: one pass over the training text, and 100 bytes of memory for each held-out document.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cupola import storage
from cupola.corpus.built import build_once
from cupola.corpus.documents import Document, DocumentWriter, documents, totals
from cupola.corpus.splitting import sections, text_hash
from cupola.display import Display
from cupola.paths import cache_root

VERSION = 1
"""Raised whenever the same sources would be separated otherwise."""


def separate(gathered: Mapping[str, Path], display: Display) -> dict[str, Path]:
    """The folders of the sources, with that of each source replaced whose training text had to be cut.

    Args:
        gathered: source -> folder of `cupola.corpus.documents`.
    """
    if len(gathered) < 2:
        return dict(gathered)
    hashes = {name: storage.read_manifest(path)["files"] for name, path in gathered.items()}
    key = storage.digest({"version": VERSION, "sources": hashes})[:32]
    target = cache_root() / "separated" / key
    build_once(target, partial(_build, gathered, target, display), display)
    dropped: dict[str, int] = storage.read_manifest(target)["dropped"]
    for name, number in dropped.items():
        if number:
            display.warn(f"{name}: {number} documents are held out by another source and are not trained on")
    return {name: target / name if dropped[name] else path for name, path in gathered.items()}


def _build(gathered: Mapping[str, Path], target: Path, display: Display) -> None:
    heldout = {text_hash(d.text) for path in gathered.values() for d in documents(path, "heldout")}
    dropped: dict[str, int] = {}
    whole = sum(totals(path, "train")[1] for path in gathered.values())
    with (
        display.task("held-out text against the other sources", whole, "bytes") as task,
        storage.new_folder(target, {"dropped": dropped}) as aside,
    ):
        for name, path in gathered.items():
            dropped[name] = 0
            for document in documents(path, "train"):
                dropped[name] += _without(document, heldout) != document
                task.advance(len(document.text.encode("utf-8")))
            if dropped[name]:
                _write(path, aside / name, heldout)


def _without(document: Document, heldout: set[int]) -> Document | None:
    """The document without what is held out; None if nothing is left."""
    if text_hash(document.text) in heldout:
        return None
    parts = sections(document.text)
    kept = [part.text for part in parts if part.hash not in heldout]
    if len(kept) == len(parts):
        return document
    return Document("".join(kept), document.id, document.source, document.licence) if kept else None


def _write(gathered: Path, folder: Path, heldout: set[int]) -> None:
    """A copy of a gathered source without what is held out elsewhere; a gathered source itself."""
    facts = {key: value for key, value in storage.read_manifest(gathered).items() if key != "files"}
    with storage.new_folder(folder, facts) as aside:
        with DocumentWriter(aside / "train.parquet") as writer:
            for document in documents(gathered, "train"):
                kept = _without(document, heldout)
                if kept is not None:
                    writer.write(kept)
        facts["documents"] = {**facts["documents"], "train": writer.documents}
        facts["bytes"] = {**facts["bytes"], "train": writer.bytes}
        with DocumentWriter(aside / "heldout.parquet") as writer:
            for document in documents(gathered, "heldout"):
                writer.write(document)
