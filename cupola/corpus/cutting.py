"""From files to portions of work of bounded size.

Small files travel together; a large file in a format that has lines or paragraphs is cut while it is
read, by the one process that decompresses it, and the cuts are read elsewhere; Parquet goes by row group.
"""

from collections.abc import Iterable, Iterator

from cupola.corpus.cleaning import is_binary
from cupola.corpus.formats import without_compression
from cupola.corpus.reading import Entry, Portion, Reading, UnreadableFile, open_file, read_some
from cupola.display import size

TOGETHER_BYTES = 1_000_000
TOGETHER_FILES = 64
CUT_BYTES = 8_000_000
COMPRESSION_GUESS = 8
BREAKS = {"jsonl": b"\n", "text": b"\n\n", "markdown": b"\n\n", "dictionary": b"\n", "fortunes": b"\n%\n"}


def portions(entries: Iterable[Entry], report: Reading) -> Iterator[Portion]:
    """The work of reading `entries`, in their order; a file that cannot be opened goes into `report`."""
    together: list[Entry] = []
    waiting = 0
    for entry in entries:
        large = _large(entry)
        if together and (large or waiting + entry.size > TOGETHER_BYTES or len(together) >= TOGETHER_FILES):
            yield Portion(together, waiting)
            together, waiting = [], 0
        if not large:
            together.append(entry)
            waiting += entry.size
            continue
        try:
            yield from _parts(entry, report)
        except UnreadableFile as error:
            report.skipped[error.reason] += 1
            report.warnings.append(f"{entry.id}: skipped, {error}")
    if together:
        yield Portion(together, waiting)


def _large(entry: Entry) -> bool:
    if entry.format == "parquet":
        return True
    factor = COMPRESSION_GUESS if without_compression(entry.path.name)[1] else 1
    return entry.format in BREAKS and entry.size * factor > CUT_BYTES


def _parts(entry: Entry, report: Reading) -> Iterator[Portion]:
    if entry.format == "parquet":
        return _row_groups(entry)
    return _line_cuts(entry, report) if entry.format == "jsonl" else _cuts(entry)


def _row_groups(entry: Entry) -> Iterator[Portion]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(entry.path) as file:
            groups = file.num_row_groups
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableFile("unreadable", f"it is not a Parquet file that can be read ({error})") from None
    for group in range(groups):
        yield Portion([entry], entry.size // groups, row_group=group)


def _cuts(entry: Entry) -> Iterator[Portion]:
    """Cuts at paragraph ends; they are documents of their own, named `path@0`, `path@1`."""
    mark = BREAKS[entry.format]
    number = told = 0
    rest = b""
    with open_file(entry) as file:
        while True:
            data = rest + read_some(file, CUT_BYTES)
            at_end = len(data) < len(rest) + CUT_BYTES
            if number == 0 and is_binary(data):
                raise UnreadableFile("binary", "binary data where text is expected")
            cut = len(data) if at_end else data.rfind(mark) + len(mark)
            if cut < len(mark) and not at_end:
                cut = data.rfind(b"\n") + 1 or len(data)
            piece, rest = data[:cut], data[cut:]
            cost = min(entry.size - told, len(piece))
            told += cost
            yield Portion([entry], cost, data=piece, first=None if at_end and number == 0 else number)
            number += 1
            if at_end:
                return


def _line_cuts(entry: Entry, report: Reading) -> Iterator[Portion]:
    """Cuts at line ends. A line of over `CUT_BYTES` is skipped while it is read, counted and said."""
    number, rest, skipped = 1, b"", 0
    told = passed = 0
    with open_file(entry) as file:
        while True:
            block = read_some(file, CUT_BYTES)
            at_end = len(block) < CUT_BYTES
            if not told + passed and is_binary(block):
                raise UnreadableFile("binary", "binary data where text is expected")
            passed += len(block)
            data = rest + block
            end = data.find(b"\n")
            first = skipped + (end if end >= 0 else len(data))
            if first > CUT_BYTES:
                skipped, rest = first, b""
                if end < 0 and not at_end:
                    continue
                report.dropped[f"line of over {size(CUT_BYTES)}"] += 1
                report.warnings.append(f"{entry.id}: line {number} has {size(skipped)} and was skipped")
                data = data[end + 1 :] if end >= 0 else b""
                number, skipped = number + 1, 0
            cut = len(data) if at_end else data.rfind(b"\n") + 1
            piece, rest = data[:cut], data[cut:]
            if piece:
                cost = min(entry.size - told, passed)
                told, passed = told + cost, 0
                yield Portion([entry], cost, data=piece, first=number)
            number += piece.count(b"\n")
            if at_end:
                return
