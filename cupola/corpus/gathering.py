"""`gather`: a recipe's source to a folder of clean, split text; from the cache if nothing has changed.

Guarantees:
- The folder `text/<hash>` in the cache appears whole or not at all; its address is a hash of the source's
  block, of what was taken (packages with their SHA-256, files with size and time, revisions) and of the
  cleaning code's version. Killed at any moment, gathering starts again; nothing half-done is taken for whole.
- Asked again, it answers at once: names and sizes of the files are compared, and their contents (SHA-256)
  once a process. Packages and hubs are not asked again until `refresh`; the user's files are looked at each
  time.
- Where a source cannot be had, its `fallback` is taken, loudly; which one is remembered (so that a network
  that comes back doesn't change the corpus under a run) and recorded in the facts until `refresh`.
- Two processes that want the same source: the second waits for the first and finds it done.

Costs: seconds for megabytes; `docs/corpus.md` has what was measured.
"""

import functools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cupola.chat.records import VERSION as RECORDS
from cupola.corpus import pool
from cupola.corpus.built import only_one
from cupola.corpus.cleaning import VERSION
from cupola.corpus.collecting import Collector
from cupola.corpus.documents import DocumentWriter
from cupola.corpus.generators import VERSION as GENERATORS
from cupola.corpus.patterns import as_list
from cupola.corpus.reading import Reading, Rules
from cupola.corpus.sources import Resolved, Source, SourceUnavailable, Work
from cupola.corpus.sources.files import FilesSource
from cupola.corpus.sources.generated import GeneratedSource
from cupola.corpus.sources.hub import HuggingFaceSource
from cupola.corpus.sources.installed import InstalledPython
from cupola.corpus.sources.packages import PackageSource
from cupola.display import Display, count, duration, size
from cupola.errors import CupolaError, InputError
from cupola.paths import cache_root
from cupola.recipe.corpora import CALLED, KINDS, PACKAGES, Corpus
from cupola.storage import MANIFEST, digest, new_folder, read_manifest, verify, write_json

WARNINGS_SHOWN = 8


@dataclass(frozen=True)
class Gathered:
    """A source's clean text, or conversations.

    Attributes:
        path: folder with `train.parquet` and `heldout.parquet` (see `documents`).
        facts: format (`recipe.corpora.Format`), documents and bytes of each split, dropped (documents by
            reason), skipped_files (by reason), decoded (by rule, what was not UTF-8), licences (documents by
            note), taken (source, fallback: bool, because), versions, cleaning; nothing_held_out (why), where
            that is so.
    """

    path: Path
    facts: dict[str, Any]


def text_root() -> Path:
    """Where gathered text lies: one folder for each source as it was taken."""
    return cache_root() / "text"


def gather(name: str, corpus: Corpus, display: Display, refresh: bool = False) -> Gathered:
    """The clean text of a source, made if it isn't there.

    Args:
        name: the source's name in the recipe, for messages.
        refresh: fetch packages and revisions again, and try every source of the fallback chain again.

    Raises:
        InputError: neither the source nor a fallback can be had, or nothing remains of it.
        CupolaError: the cache can't be written, a kept archive is damaged, a process was killed.
    """
    request = digest({"block": corpus.model_dump(mode="json"), **_code(corpus)})[:32]
    pointer = text_root() / f"{request}.json"
    with only_one(pointer, f"the text of {name}", display):
        chain = _chain(corpus)
        known = _remembered(pointer, refresh)
        because: list[str] = known.get("because", [])
        for number in range(known.get("chosen", 0), len(chain)):
            block = chain[number]
            source = source_of(block)
            try:
                # What a hub or registry answered before stands; what is on this machine is looked at.
                resolved = (
                    Resolved(known["inputs"], known["versions"])
                    if known.get("chosen") == number and not source.local and _cached(block, known["inputs"])
                    else source.resolve(display, refresh)
                )
                gathered = _gather_one(name, block, source, resolved, display)
            except SourceUnavailable as error:
                because.append(f"{source.label}: {error}")
                if number + 1 < len(chain):
                    display.warn(
                        f"{name}: {error}; taking the fallback, {source_of(chain[number + 1]).label}"
                    )
                continue
            remembered = {"inputs": resolved.inputs, "versions": resolved.versions}
            write_json(pointer, {"chosen": number, "because": because, **remembered})
            if known.get("chosen") == number and number > 0:
                display.warn(
                    f"{name}: {source.label} is a fallback, taken before since {because[0]};"
                    " `cupola corpus gather --refresh` tries again"
                )
            facts = {**read_manifest(gathered), "versions": resolved.versions}
            facts["taken"] = {"source": source.label, "fallback": number > 0, "because": because}
            _note_nothing_held_out(name, block, facts, display)
            return Gathered(gathered, facts)
    raise InputError(f"corpora.{name}: cannot be had: {'; '.join(because)}")


SOURCES: dict[str, Callable[[Corpus], Source]] = {
    "files": FilesSource,
    "huggingface": HuggingFaceSource,
    "python": InstalledPython,
    "generate": lambda corpus: GeneratedSource(corpus, source_of),
    **{client: partial(PackageSource, client) for client in PACKAGES},
}
"""By the key of a corpus that names it (`corpora.KINDS`)."""


def source_of(corpus: Corpus) -> Source:
    """The source that a block names.

    Raises:
        InputError: it names none, or several.
    """
    kinds = corpus.kinds()
    if len(kinds) != 1:
        raise InputError(f"a corpus has one of {', '.join(KINDS)}, not {' and '.join(kinds) or 'none'}")
    return SOURCES[kinds[0]](corpus)


def _chain(corpus: Corpus | None) -> list[Corpus]:
    chain = []
    while corpus is not None:
        chain.append(corpus.model_copy(update={"fallback": None}))
        corpus = corpus.fallback
    return chain


def _remembered(pointer: Path, refresh: bool) -> dict[str, Any]:
    if refresh or not pointer.exists():
        return {}
    try:
        return json.loads(pointer.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _target(block: Corpus, inputs: Any) -> Path:
    address = {"block": block.model_dump(mode="json"), "inputs": inputs, **_code(block)}
    return text_root() / digest(address)[:32]


def _code(corpus: Corpus) -> dict[str, int]:
    """Versions of the code that makes the text."""
    generates = any(block.generate for block in _chain(corpus))
    versions = {"cleaning": VERSION}
    if corpus.holds() != "text":
        versions["records"] = RECORDS
    if generates:
        versions["generators"] = GENERATORS
    return versions


def _cached(block: Corpus, inputs: Any) -> bool:
    return (_target(block, inputs) / MANIFEST).exists()


@functools.cache
def _verified(target: Path) -> None:
    """Contents are compared once a process; a failure isn't remembered."""
    verify(target)


def _gather_one(name: str, block: Corpus, source: Source, resolved: Resolved, display: Display) -> Path:
    target = _target(block, resolved.inputs)
    if _cached(block, resolved.inputs):
        try:
            verify(target, contents=False)
            _verified(target)
            facts = read_manifest(target)
            display.say(f"{name}: {_summary(facts)}, from the cache")
            return target
        except CupolaError as error:
            display.warn(f"{name}: {error}; gathering it again")
            resolved = source.resolve(display, False)  # a remembered answer cannot be opened
            target = _target(block, resolved.inputs)
    begun = time.monotonic()
    _make(name, block, source, target, resolved, display)
    facts = read_manifest(target)
    seconds = time.monotonic() - begun
    rate = sum(facts["bytes"].values()) / max(seconds, 1e-3)
    display.say(f"{name}: {_summary(facts)}, from {source.label} in {duration(seconds)} ({size(rate)}/s)")
    return target


def _note_nothing_held_out(name: str, block: Corpus, facts: dict[str, Any], display: Display) -> None:
    """Say and record why a source has no held-out text, and what gives it some."""
    if facts["documents"]["heldout"] == 0:
        alone = "it is one piece of text; add another, or cut it into several files"
        why = alone if block.heldout else "heldout: 0"
        facts["nothing_held_out"] = why
        display.warn(f"{name}: nothing is held out of it, so nothing is measured on it ({why})")


def _summary(facts: dict[str, Any]) -> str:
    what = CALLED[facts["format"]]
    text = f"{count(sum(facts['documents'].values()))} {what}, {size(sum(facts['bytes'].values()))}"
    dropped = sum(facts["dropped"].values())
    return text + (f" ({count(dropped)} dropped)" if dropped else "")


def _make(
    name: str, block: Corpus, source: Source, target: Path, resolved: Resolved, display: Display
) -> None:
    report = Reading()
    facts: dict[str, Any] = {}
    with new_folder(target, facts) as folder:
        workspace = folder / "unpacked"
        workspace.mkdir()
        with nullcontext() if source.local else display.task(f"{name}: opening"):
            work = source.open(workspace, report)
        with (
            DocumentWriter(folder / "train.parquet") as train,
            DocumentWriter(folder / "heldout.parquet") as heldout,
        ):
            collector = Collector(block.heldout, block.max_bytes, train, heldout)
            _collect(name, block, work, collector, report, display)
        shutil.rmtree(workspace)
        dropped = dict(sorted((report.dropped + collector.dropped).items()))
        skipped = dict(sorted(report.skipped.items()))
        _warn(name, report, dropped, display)
        if train.documents == 0:
            raise InputError(_empty(name, source, dropped, skipped, heldout.documents))
        facts.update(
            documents={"train": train.documents, "heldout": heldout.documents},
            bytes={"train": train.bytes, "heldout": heldout.bytes},
            dropped=dropped,
            skipped_files=skipped,
            cut_at_max_bytes=collector.full,
            decoded=dict(sorted(report.decoded.items())),
            licences=dict(sorted(collector.licences.items())),
            format=block.holds(),
            source=source.label,
            inputs_sha256=digest(resolved.inputs),
            versions=resolved.versions,
            cleaning=VERSION,
        )


def _collect(
    name: str, block: Corpus, work: Work, collector: Collector, report: Reading, display: Display
) -> None:
    automatic = not as_list(block.files)
    rules = Rules(
        block.min_document_bytes,
        block.text_field,
        english_only=automatic,
        find_repeats=automatic,
        format=block.holds(),
    )
    with display.task(f"{name}: reading", work.cost, "bytes") as task:
        readings = pool.read_in_order(work.portions, rules, pool.processes_for(work.cost))
        try:
            for reading in readings:
                for document in reading.documents:
                    if not collector.full:
                        collector.add(document)
                report.add(reading)
                task.advance(reading.cost)
                if collector.full:
                    break
        finally:
            readings.close()  # type: ignore[attr-defined]
        collector.finish()


def _warn(name: str, report: Reading, dropped: dict[str, int], display: Display) -> None:
    for line in report.warnings[:WARNINGS_SHOWN]:
        display.warn(f"{name}: {line}")
    if len(report.warnings) > WARNINGS_SHOWN:
        display.warn(f"{name}: {len(report.warnings) - WARNINGS_SHOWN} more such lines; counts follow")
    for reason, records in report.unusable.items():
        ids = ", ".join(record for record, _ in records) + (", ..." if dropped[reason] > len(records) else "")
        display.warn(f"{name}: {dropped[reason]} records are left out, {records[0][1]} ({ids})")
    if dropped:
        display.say(f"{name}: dropped {_listed(dropped)}")
    if report.skipped:
        display.say(f"{name}: files not read: {_listed(report.skipped)}")
    for rule, number in report.decoded.items():
        display.warn(f"{name}: {number} texts were not UTF-8 and were read as {rule}")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items())


def _empty(name: str, source: Source, dropped: dict[str, int], skipped: dict[str, int], heldout: int) -> str:
    counts = Counter({**dropped, **{f"files {reason}": number for reason, number in skipped.items()}})
    if heldout:
        counts["held out (lower `heldout`)"] = heldout
    why = _listed(counts) or "it holds no files that are wanted"
    return f"corpora.{name}: no text remains of {source.label}: {why}"
