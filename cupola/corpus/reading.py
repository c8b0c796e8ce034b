"""What one process does with one piece of work: open, decode, convert, clean, hash.

Guarantees: a file that cannot be read, is binary or is malformed costs that file and one line, never the run;
every document that is not handed on is counted under a reason. A process holds one portion at a time: some
small files, or one cut (about 8 MB) of a large one. Only single files in formats that must be parsed whole
(HTML, manual pages, JSON) are read whole, up to 128 MB.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cupola.corpus.cleaning import clean, decode, is_binary
from cupola.corpus.formats import without_compression
from cupola.corpus.formats.html import declared_charset, html_to_text
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
from cupola.corpus.splitting import Section, sections

WHOLE_FILE_LIMIT = 128_000_000
JSON_PROSE_WORDS = 3

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
    """A piece of work: whole files; or `data` or `row_group`, a cut of the one file; or ready `texts`.

    Attributes:
        first: number of the first line (from 1) or part (from 0) in the file, for ids; None: the whole file.
        cost: bytes of progress that the portion stands for.
        texts: pairs of id and text from a source that has no files.
    """

    entries: list[Entry]
    cost: int
    data: bytes | None = None
    first: int | None = None
    row_group: int | None = None
    texts: list[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the recipe's block concerns reading."""

    min_document_bytes: int
    text_field: str
    english_only: bool = False
    find_repeats: bool = False


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
        cost: as of the portion.
    """

    documents: list[Read] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    cost: int = 0


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
            for name, text in _texts(portion, entry, rules, reading):
                _keep(name, text, entry, rules, reading)
        except UnreadableFile as error:
            reading.skipped[error.reason] += 1
            reading.warnings.append(f"{entry.id}: skipped, {error}")
    return reading


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
    if portion.texts is not None:
        yield from portion.texts
        return
    if entry.format == "parquet":
        yield from _table(entry, portion.row_group, rules.text_field)
        return
    data = portion.data if portion.data is not None else whole(entry)
    if not data.strip():
        reading.dropped["empty"] += 1
        return
    if is_binary(data):
        raise UnreadableFile("binary", "binary data where text is expected")
    if entry.format == "jsonl":
        yield from _lines(data, entry, portion.first or 1, rules.text_field, reading)
        return
    found = decode(data, declared_charset(data) if entry.format == "html" else None)
    if found.rule != "utf-8":
        reading.decoded[found.rule] += 1
    if entry.format == "json":
        yield entry.id, _json_text(found.text, rules.text_field)
        return
    is_rst = entry.format == "text" and entry.packaged and reads_as_rst(found.text)
    text = CONVERTERS["rst" if is_rst else entry.format](found.text)
    if not text and entry.format in ("html", "manual"):
        page = "index page" if entry.packaged else "no text beside links"
        reading.dropped[page if entry.format == "html" else "alias or mdoc manual page"] += 1
        return
    yield (entry.id if portion.first is None else f"{entry.id}@{portion.first}"), text


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


def _lines(
    data: bytes, entry: Entry, first: int, text_field: str, reading: Reading
) -> Iterator[tuple[str, str]]:
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
        text = value.get(text_field) if isinstance(value, dict) else None
        if isinstance(text, str):
            yield f"{entry.id}:{number}", text
        else:
            reading.dropped[f"no text in field {text_field!r}"] += 1
    if malformed:
        reading.dropped["malformed JSON"] += len(malformed)
        reading.warnings.append(
            f"{entry.id}: {len(malformed)} lines are not JSON and were skipped, the first is {malformed[0]}"
        )


def _table(entry: Entry, row_group: int | None, text_field: str) -> Iterator[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(entry.path) as file:
            if text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UnreadableFile(
                    f"no column {text_field!r}",
                    f"it has no column {text_field!r} (it has {names}); set text_field",
                )
            groups = range(file.num_row_groups) if row_group is None else [row_group]
            for group in groups:
                column = file.read_row_group(group, columns=[text_field]).column(text_field)
                for number, text in enumerate(column.to_pylist()):
                    yield f"{entry.id}:{group}.{number}", text if isinstance(text, str) else ""
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableFile("unreadable", f"it is not a Parquet file that can be read ({error})") from None


def _json_text(source: str, text_field: str) -> str:
    """Every string of a JSON document that reads as prose, under the keys that lead to it."""
    try:
        value = json.loads(source)
    except ValueError as error:
        raise UnreadableFile("malformed JSON", f"it is not JSON ({error})") from None
    return "\n".join(_prose(value, "", text_field))


def _prose(value: Any, label: str, text_field: str) -> Iterable[str]:
    if isinstance(value, dict):
        text = value.get(text_field)
        if isinstance(text, str) and text.strip():
            yield f"{label}: {_plain(text)}" if label else _plain(text)
        elif label and any(isinstance(item, dict) for item in value.values()):
            yield f"\n{label}"
        for key, item in value.items():
            if not (key == text_field and isinstance(item, str)):
                yield from _prose(item, str(key), text_field)
    elif isinstance(value, list):
        for item in value:
            yield from _prose(item, "", text_field)
    elif isinstance(value, str) and len(value.split()) >= JSON_PROSE_WORDS:
        yield f"{label}: {_plain(value)}" if label else _plain(value)


def _plain(text: str) -> str:
    return html_to_text(text) if "<" in text and "</" in text else text
