"""What one process does with one piece of work: open, decode, convert, clean, hash.

Guarantees: a file that cannot be read, is binary or is malformed costs that file and one line, never the run;
every document that is not handed on is counted under a reason. A process holds one portion at a time: some
small files, or one cut (about 8 MB) of a large one. Only single files in formats that must be parsed whole
(HTML, manual pages, JSON) are read whole, up to 128 MB.

Of a source of conversations the records are read, and what is kept of each is its canonical JSON
(`chat.conversation`), as it stands: how text is judged and cut does not concern it.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from cupola.chat.conversation import Unusable
from cupola.chat.records import LINES, opening
from cupola.corpus.cleaning import clean, decode, is_binary
from cupola.corpus.formats import without_compression
from cupola.corpus.formats.html import declared_charset, html_to_text
from cupola.corpus.formats.json_prose import json_to_text
from cupola.corpus.formats.plain import (
    dictionary_to_text,
    fortunes_to_text,
    info_to_text,
    reads_as_rst,
    rst_to_text,
)
from cupola.corpus.formats.pod import pod_to_text
from cupola.corpus.formats.python import docstrings_to_text
from cupola.corpus.formats.roff import roff_to_text
from cupola.corpus.judgements import anchors, reads_as_english, without_contents, without_edges
from cupola.corpus.splitting import Section, sections, text_hash
from cupola.recipe.corpora import Format

WHOLE_FILE_LIMIT = 128_000_000
UNUSABLE_NAMED = 3

CONVERTERS: dict[str, Callable[[str], str]] = {
    "text": lambda text: text,
    "markdown": lambda text: text,
    "code": lambda text: text,
    "docstrings": docstrings_to_text,
    "rst": rst_to_text,
    "html": html_to_text,
    "pod": pod_to_text,
    "manual": roff_to_text,
    "info": info_to_text,
    "fortunes": fortunes_to_text,
    "dictionary": dictionary_to_text,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to read.

    Attributes:
        id: the id of its document, or the beginning of the ids of its documents.
        source, licence: as in `Document`.
        size: bytes on the disk, for progress.
        packaged: the file is from a package, whose reader also sorts out languages and repeats.
        edges: lines that begin or end many pages of the package, and are taken off.
    """

    path: Path
    id: str
    format: str
    source: str
    licence: str
    size: int
    packaged: bool = False
    edges: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Portion:
    """A piece of work: whole files; or `data` or `row_group`, a cut of the one file; or what is `ready`.

    Attributes:
        first: number of the first line (from 1) or part (from 0) in the file, for ids; None: the whole file.
        cost: bytes of progress that the portion stands for.
        ready: from a source that has no files, pairs of id and text, or id and record of a conversation.
    """

    entries: list[Entry]
    cost: int
    data: bytes | None = None
    first: int | None = None
    row_group: int | None = None
    ready: list[tuple[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the recipe's block concerns reading."""

    min_document_bytes: int
    text_field: str
    english_only: bool = False
    find_repeats: bool = False
    format: Format = "text"


@dataclass(frozen=True, slots=True)
class Read:
    """A document as read: its sections, and fingerprints for finding the same text in another format."""

    id: str
    source: str
    licence: str
    format: str
    sections: list[Section]
    anchors: frozenset[int]


@dataclass(slots=True)
class Reading:
    """The result of a portion.

    Attributes:
        dropped: documents, by reason.
        skipped: files that were not read, by reason.
        decoded: texts that were not UTF-8, by the rule that read them.
        unusable: the first records that are no conversation, by reason: id and what is wrong.
        cost: as of the portion.
    """

    documents: list[Read] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    unusable: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    cost: int = 0

    def add(self, other: "Reading") -> None:
        """Take over everything but the documents and the cost."""
        self.skipped.update(other.skipped)
        self.dropped.update(other.dropped)
        self.decoded.update(other.decoded)
        self.warnings += other.warnings
        for reason, records in other.unusable.items():
            known = self.unusable.setdefault(reason, [])
            known += records[: UNUSABLE_NAMED - len(known)]


class UnreadableFile(Exception):
    """A file that costs itself and one line; the message says why, `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_portion(portion: Portion, rules: Rules) -> Reading:
    """Do a piece of work."""
    reading = Reading(cost=portion.cost)
    for entry in portion.entries:
        try:
            if rules.format != "text":
                for name, record in _records(portion, entry, reading):
                    _keep_record(name, record, entry, rules.format, reading)
                continue
            for name, text in _texts(portion, entry, rules, reading):
                _keep(name, text, entry, rules, reading)
        except UnreadableFile as error:
            reading.skipped[error.reason] += 1
            reading.warnings.append(f"{entry.id}: skipped, {error}")
    return reading


def _keep_record(name: str, record: Any, entry: Entry, format: Format, reading: Reading) -> None:
    try:
        line = LINES[format](record)
    except Unusable as error:
        reading.dropped[error.reason] += 1
        named = reading.unusable.setdefault(error.reason, [])
        if len(named) < UNUSABLE_NAMED:
            named.append((name, str(error)))
        return
    whole_line = [Section(line, text_hash(line), text_hash(opening(line)))]
    reading.documents.append(Read(name, entry.source, entry.licence, entry.format, whole_line, frozenset()))


def _keep(name: str, text: str, entry: Entry, rules: Rules, reading: Reading) -> None:
    text = without_edges(clean(text), entry.edges)
    if entry.packaged and entry.format == "text":
        text = without_contents(text)
    if not text:
        reading.dropped["empty"] += 1
    elif len(text.encode("utf-8")) < rules.min_document_bytes:
        reading.dropped["shorter than min_document_bytes"] += 1
    elif entry.packaged and rules.english_only and not reads_as_english(text):
        reading.dropped["not English prose"] += 1
    else:
        marks = anchors(text) if rules.find_repeats and entry.packaged else frozenset()
        reading.documents.append(Read(name, entry.source, entry.licence, entry.format, sections(text), marks))


def _texts(portion: Portion, entry: Entry, rules: Rules, reading: Reading) -> Iterator[tuple[str, str]]:
    field = rules.text_field
    if portion.ready is not None:
        yield from portion.ready
        return
    if entry.format == "parquet":
        for name, text in _rows(entry, portion.row_group, field):
            yield name, text if isinstance(text, str) else ""
        return
    data = _data(portion, entry, reading)
    if data is None:
        return
    if entry.format == "jsonl":
        for name, value in _lines(data, entry, portion.first or 1, reading):
            text = value.get(field) if isinstance(value, dict) else None
            if isinstance(text, str):
                yield name, text
            else:
                reading.dropped[f"no text in field {field!r}"] += 1
        return
    found = decode(data, declared_charset(data) if entry.format == "html" else None)
    if found.rule != "utf-8":
        reading.decoded[found.rule] += 1
    if entry.format == "json":
        yield entry.id, _parsed(partial(json_to_text, found.text, field))
        return
    is_rst = entry.format == "text" and entry.packaged and reads_as_rst(found.text)
    text = CONVERTERS["rst" if is_rst else entry.format](found.text)
    if not text and entry.format in ("html", "manual"):
        page = "index page" if entry.packaged else "no text beside links"
        reading.dropped[page if entry.format == "html" else "alias or mdoc manual page"] += 1
        return
    yield (entry.id if portion.first is None else f"{entry.id}@{portion.first}"), text


def _records(portion: Portion, entry: Entry, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Ids and records of a portion, whatever they hold."""
    if portion.ready is not None:
        yield from portion.ready
    elif entry.format == "parquet":
        yield from _rows(entry, portion.row_group, None)
    elif entry.format not in ("jsonl", "json"):
        raise UnreadableFile("without records", "conversations are read from jsonl, json and parquet files")
    elif (data := _data(portion, entry, reading)) is not None:
        if entry.format == "jsonl":
            yield from _lines(data, entry, portion.first or 1, reading)
            return
        found = decode(data)
        if found.rule != "utf-8":
            reading.decoded[found.rule] += 1
        value = _parsed(partial(json.loads, found.text))
        records = value if isinstance(value, list) else [value]
        yield from ((f"{entry.id}:{number}", record) for number, record in enumerate(records))


def _data(portion: Portion, entry: Entry, reading: Reading) -> bytes | None:
    """The bytes of a file or a cut of it; None, and counted, where there is nothing in it."""
    data = portion.data if portion.data is not None else whole(entry)
    if not data.strip():
        reading.dropped["empty"] += 1
        return None
    if is_binary(data):
        raise UnreadableFile("binary", "binary data where text is expected")
    return data


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except ValueError as error:
        raise UnreadableFile("malformed JSON", f"it is not JSON ({error})") from None


def open_file(entry: Entry) -> IO[bytes]:
    """Open a file for reading bytes, decompressed.

    Raises:
        UnreadableFile: it is missing or may not be read.
    """
    kind = without_compression(entry.path.name)[1]
    try:
        if kind == "gzip":
            import gzip

            return gzip.open(entry.path)  # type: ignore[return-value]
        if kind == "zstd":
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=2**31)
            return reader.stream_reader(entry.path.open("rb"), read_across_frames=True, closefd=True)
        if kind in ("bz2", "xz"):
            import bz2
            import lzma

            return bz2.open(entry.path) if kind == "bz2" else lzma.open(entry.path)
        return entry.path.open("rb")
    except OSError as error:
        raise UnreadableFile("unreadable", f"it cannot be read ({error.strerror or error})") from None


def read_some(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes; fewer only at the end.

    Raises:
        UnreadableFile: the compressed data is damaged.
    """
    import lzma

    import zstandard

    pieces, wanted = [], size
    try:
        while wanted > 0 and (piece := file.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError) as error:
        raise UnreadableFile("unreadable", f"it cannot be read to its end ({error})") from None
    return b"".join(pieces)


def whole(entry: Entry) -> bytes:
    """A whole file, decompressed.

    Raises:
        UnreadableFile: it cannot be read, or holds more than `WHOLE_FILE_LIMIT`.
    """
    with open_file(entry) as file:
        data = read_some(file, WHOLE_FILE_LIMIT + 1)
    if len(data) > WHOLE_FILE_LIMIT:
        raise UnreadableFile("too large", f"over {WHOLE_FILE_LIMIT // 10**6} MB in one {entry.format} file")
    return data


def _lines(data: bytes, entry: Entry, first: int, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Ids and values of the lines that are JSON; the others are counted."""
    malformed: list[int] = []
    for number, line in enumerate(data.split(b"\n"), first):
        if not line.strip():
            continue
        found = decode(line)
        if found.rule != "utf-8":
            reading.decoded[found.rule] += 1
        try:
            value = json.loads(found.text)
        except ValueError:
            malformed.append(number)
            continue
        yield f"{entry.id}:{number}", value
    if malformed:
        reading.dropped["malformed JSON"] += len(malformed)
        reading.warnings.append(
            f"{entry.id}: {len(malformed)} lines are not JSON and were skipped, the first is {malformed[0]}"
        )


def _rows(entry: Entry, row_group: int | None, column: str | None) -> Iterator[tuple[str, Any]]:
    """Ids and values of a column; None: of all columns, rows as records."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(entry.path) as file:
            if column is not None and column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UnreadableFile(
                    f"no column {column!r}",
                    f"it has no column {column!r} (it has {names}); set text_field",
                )
            groups = range(file.num_row_groups) if row_group is None else [row_group]
            for group in groups:
                table = file.read_row_group(group, columns=None if column is None else [column])
                rows = table.to_pylist() if column is None else table.column(column).to_pylist()
                yield from ((f"{entry.id}:{group}.{number}", row) for number, row in enumerate(rows))
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableFile("unreadable", f"it is not a Parquet file that can be read ({error})") from None
