"""From files to portions of work of bounded size.

Small files travel together; a large file in a format that has lines or paragraphs is cut while it is
read, by the one process that decompresses it, and the cuts are read elsewhere; Parquet goes by row group.
"""

from collections.abc import Iterable, Iterator

from cupola.corpus.cleaning import is_binary
from cupola.corpus.formats import without_compression
from cupola.corpus.reading import Entry, Portion, Reading, UnreadableFile, open_file, read_some

TOGETHER_BYTES = 1_000_000
TOGETHER_FILES = 64
CUT_BYTES = 8_000_000
COMPRESSION_GUESS = 8
BREAKS = {"jsonl": b"\n", "text": b"\n\n", "markdown": b"\n\n", "dictionary": b"\n", "fortunes": b"\n%\n"}


def portions(entries: Iterable[Entry], report: Reading) -> Iterator[Portion]:
    """The work of reading `entries`, in their order; a file that cannot be opened goes into `report`."""
    together: list[Entry] = []
    size = 0
    for entry in entries:
        large = _large(entry)
        if together and (large or size + entry.size > TOGETHER_BYTES or len(together) >= TOGETHER_FILES):
            yield Portion(together, size)
            together, size = [], 0
        if not large:
            together.append(entry)
            size += entry.size
            continue
        try:
            yield from _row_groups(entry) if entry.format == "parquet" else _cuts(entry)
        except UnreadableFile as error:
            report.skipped[error.reason] += 1
            report.warnings.append(f"{entry.id}: skipped, {error}")
    if together:
        yield Portion(together, size)


def _large(entry: Entry) -> bool:
    if entry.format == "parquet":
        return True
    factor = COMPRESSION_GUESS if without_compression(entry.path.name)[1] else 1
    return entry.format in BREAKS and entry.size * factor > CUT_BYTES


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
    """Cuts at line or paragraph ends; a text's cuts are documents of their own, named `path@0`, `path@1`."""
    mark = BREAKS[entry.format]
    by_line = entry.format == "jsonl"
    number = 1 if by_line else 0
    rest = b""
    told = 0
    with open_file(entry) as file:
        while True:
            data = rest + read_some(file, CUT_BYTES)
            at_end = len(data) < len(rest) + CUT_BYTES
            if number <= 1 and is_binary(data):
                raise UnreadableFile("binary", "binary data where text is expected")
            cut = len(data) if at_end else data.rfind(mark) + len(mark)
            if cut < len(mark) and not at_end:
                cut = data.rfind(b"\n") + 1 or len(data)
                if by_line and cut == len(data):
                    where = "it has" if number == 1 else f"what follows line {number - 1}, since there is"
                    raise UnreadableFile("too large", f"{where} a line of over {CUT_BYTES // 10**6} MB")
            piece, rest = data[:cut], data[cut:]
            cost = min(entry.size - told, len(piece))
            told += cost
            whole = at_end and number == 0
            yield Portion([entry], cost, data=piece, first=None if whole else number)
            number += piece.count(b"\n") if by_line else 1
            if at_end:
                return
