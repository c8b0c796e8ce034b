"""Megatron's indexed format: raw tokens in a `.bin`, where each sequence lies in an `.idx`.

    .idx   9 bytes  "MMIDIDX\\0\\0"
           u64      version, 1
           u8       code of the tokens' type (`DTYPES`)
           u64      n, number of sequences
           u64      m, number of document boundaries (documents + 1)
           i32 [n]  lengths of the sequences, in tokens
           i64 [n]  where they begin in the `.bin`, in bytes
           i64 [m]  the sequence with which each document begins; the last is n
    .bin   the tokens, little-endian, sequence after sequence

Both are read by memory map, so opening costs nothing; `check` reads the whole index, 12 bytes a document.
Writing keeps 8 MB in memory whatever the number of documents.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cupola.errors import CupolaError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in enumerate(("u1", "i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"), start=1)
}
AT_ONCE = 1_000_000


class Index:
    """An `.idx` and the size of its `.bin`.

    Attributes:
        dtype: of the tokens.
        lengths: tokens of each sequence, (sequences,) int32.
        pointers: first byte of each sequence, (sequences,) int64.
        boundaries: first sequence of each document, then the number of sequences, (documents + 1,) int64.
    """

    def __init__(self, path: Path, bin_bytes: int) -> None:
        """Map an index.

        Raises:
            CupolaError: it is missing, no index, of another version or type, or of the wrong size.
        """
        self.path, self.bin_bytes = path, bin_bytes
        try:
            with path.open("rb") as file:
                header = file.read(HEADER.size)
            size = path.stat().st_size
        except OSError as error:
            raise CupolaError(f"{path}: cannot be read ({error.strerror})") from None
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise CupolaError(f"{path}: is not a Megatron index (it does not begin with MMIDIDX)")
        _, version, code, sequences, boundaries = HEADER.unpack(header)
        if version != VERSION:
            raise CupolaError(f"{path}: has version {version} of the format; version {VERSION} is read")
        if code not in DTYPES or DTYPES[code].kind not in "iu":
            raise CupolaError(f"{path}: holds no integer tokens (type code {code})")
        expected = HEADER.size + 12 * sequences + 8 * boundaries
        if size != expected or not boundaries:
            raise CupolaError(
                f"{path}: has {size} bytes, {expected} are expected for {sequences} sequences and"
                f" {boundaries} document boundaries; it is cut off, or from a multimodal store"
            )
        self.dtype = DTYPES[code]
        self.lengths = _mapped(path, np.dtype("<i4"), HEADER.size, sequences)
        self.pointers = _mapped(path, np.dtype("<i8"), HEADER.size + 4 * sequences, sequences)
        self.boundaries = _mapped(path, np.dtype("<i8"), HEADER.size + 12 * sequences, boundaries)
        self._check_end()

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.boundaries) - 1

    def document_starts(self) -> np.ndarray:
        """First token of each document, (documents,) int64."""
        ends = np.append(self.pointers, self.bin_bytes)
        return ends[self.boundaries[:-1]] // self.dtype.itemsize

    def check(self) -> None:
        """Read the whole index: sequences follow each other without gap, documents are in order.

        Raises:
            CupolaError: names the first sequence that does not fit.
        """
        at = 0
        for start in range(0, len(self.lengths), AT_ONCE):
            sizes = self.lengths[start : start + AT_ONCE].astype(np.int64) * self.dtype.itemsize
            ends = at + np.cumsum(sizes)
            wrong = (self.pointers[start : start + AT_ONCE] != ends - sizes) | (sizes < 0)
            if wrong.any():
                raise CupolaError(
                    f"{self.path}: sequence {start + int(wrong.argmax())} does not lie behind the one before"
                )
            at = int(ends[-1])
        if at != self.bin_bytes:
            raise CupolaError(f"{self.path}: its sequences are {at} bytes, the .bin has {self.bin_bytes}")
        boundaries = self.boundaries
        if boundaries[0] != 0 or boundaries[-1] != len(self.lengths) or (np.diff(boundaries) < 0).any():
            raise CupolaError(f"{self.path}: its documents are not in order")

    def _check_end(self) -> None:
        """The cheap part of `check`: the last sequence ends where the `.bin` does."""
        end = 0
        if len(self.lengths):
            end = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
        if end != self.bin_bytes:
            raise CupolaError(
                f"{self.path}: its last sequence ends at byte {end}, but the .bin has {self.bin_bytes} bytes;"
                " one of the two is cut off or belongs to another store"
            )


def _mapped(path: Path, dtype: np.dtype, offset: int, length: int) -> np.ndarray:
    if not length:  # nothing can't be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset, (length,))


def mapped_tokens(path: Path, dtype: np.dtype) -> np.ndarray:
    """The tokens of a `.bin`, (tokens,), read-only."""
    return _mapped(path, dtype, 0, path.stat().st_size // dtype.itemsize)


def write_index(path: Path, dtype: np.dtype, lengths: Path) -> None:
    """Write the `.idx` of a `.bin` in which each sequence is one document.

    Args:
        dtype: of the tokens, one of `DTYPES`.
        lengths: a raw file of the documents' lengths, int32.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype)
    documents = lengths.stat().st_size // 4
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, documents, documents + 1))
        for block in _blocks(lengths):
            file.write(block.tobytes())
        at = 0
        for block in _blocks(lengths):
            ends = at + np.cumsum(block.astype("<i8") * dtype.itemsize)
            file.write(np.concatenate([[at], ends[:-1]]).astype("<i8").tobytes())
            at = int(ends[-1])
        for start in range(0, documents + 1, AT_ONCE):
            file.write(np.arange(start, min(start + AT_ONCE, documents + 1), dtype="<i8").tobytes())


def _blocks(lengths: Path) -> Iterator[np.ndarray]:
    with lengths.open("rb") as file:
        while raw := file.read(4 * AT_ONCE):
            yield np.frombuffer(raw, "<i4")
