"""Clean text on the disk: Parquet files of documents, written and read with bounded memory.

A gathered source is a folder with `train.parquet` and `heldout.parquet`, columns text, id, source, licence
(all strings), zstd-compressed, and `manifest.json`. Row groups hold about 8 MB of text, which is what
reading and writing keep in memory. The columns are plain, so any tool that reads Parquet reads them.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cupola.errors import CupolaError
from cupola.storage import read_manifest

Split = Literal["train", "heldout"]
COLUMNS = ("text", "id", "source", "licence")
ROW_GROUP_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of clean text.

    Attributes:
        id: where it came from, unique within its source; a part of a long document ends in `#first-last`
            (its sections).
        source: the package, dataset or kind of source, such as `apt:git-doc`.
        licence: a short note.
    """

    text: str
    id: str
    source: str
    licence: str


class DocumentWriter:
    """Writes one Parquet file; a context manager. `documents` and `bytes` (UTF-8) count what was written."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Document] = []
        self._waiting_bytes = 0
        self.documents = 0
        self.bytes = 0

    def write(self, document: Document) -> None:
        """Add a document."""
        size = len(document.text.encode("utf-8"))
        self.documents += 1
        self.bytes += size
        self._waiting.append(document)
        self._waiting_bytes += size
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*map(astuple, self._waiting), strict=True) if self._waiting else [[]] * len(COLUMNS)
        arrays = [self._arrow.array(list(column), self._arrow.string()) for column in columns]
        self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._waiting, self._waiting_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and (self._waiting or self.documents == 0):
            self._flush()
        self._file.close()


def documents(folder: Path, split: Split) -> Iterator[Document]:
    """The documents of a gathered source, in the order in which they were written.

    Args:
        folder: `Gathered.path`.

    Raises:
        CupolaError: the file is missing or cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{split}.parquet"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(COLUMNS))
                for row in zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True):
                    yield Document(*row)
    except (OSError, pyarrow.ArrowException) as error:
        raise CupolaError(f"{path}: cannot be read as gathered text ({error}); gather it again") from error


def totals(folder: Path, split: Split) -> tuple[int, int]:
    """(documents, bytes of text) of a split, from the manifest: for progress bars."""
    facts: dict[str, Any] = read_manifest(folder)
    return facts["documents"][split], facts["bytes"][split]
