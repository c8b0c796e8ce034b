"""The token store: every document's tokens and then the delimiter, end to end, in one flat file.

A store is a folder that appears whole (`cupola.storage`):

    tokens.bin      the tokens: uint16 while every id fits, else int32
    tokens.idx      where each document lies; Megatron's format, so `<folder>/tokens` is a Megatron prefix
    learnt.bin      of packed items only: what is learnt of each token (`data.batch`), a byte each
    manifest.json   SHA-256 of all, tokenizer, documents, tokens, bytes of text, facts of the source

Opening one checks names, sizes and that index and tokens end together, and reads nothing else; `verify`
reads everything. A store that Megatron's tools made has no manifest: `ForeignStore` opens it.

Of *packed* items (conversations) a document is a row: some items, each ending in a delimiter, and delimiters
for what stays empty, always `row_length` tokens. A row is read from the delimiter before it, as text is.

The fingerprint is a hash of the tokens and the tokenizer, not of the place or the index: stores of the same
contents have the same, whoever wrote them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from cupola import storage
from cupola.data.indexed import Index, mapped_tokens, write_index
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.paths import cache_root

KIND = "token store"
VERSION = 1
BIN, IDX, LEARNT = "tokens.bin", "tokens.idx", "learnt.bin"
LENGTHS = "lengths.part"
LARGEST_UINT16_SIZE = 65_536
AT_ONCE = 4_000_000
LONGEST_DOCUMENT = 2**31 - 1


def stores_root() -> Path:
    """Where the cache keeps its stores, each as `<hash>/<split>` (`cupola.corpus.encoding`)."""
    return cache_root() / "stores"


class StoreTokenizer(Protocol):
    """What a store needs to know of a tokenizer, such as `cupola.corpus.tokenizer.Tokenizer`."""

    size: int
    delimiter: int
    fingerprint: str

    def token_bytes(self, number: int) -> bytes:
        """The bytes that a token stands for."""


def token_dtype(size: int) -> np.dtype:
    """The type of the tokens of a vocabulary: uint16 up to 65,536 ids, else int32 (there is no uint32)."""
    return np.dtype("<u2") if size <= LARGEST_UINT16_SIZE else np.dtype("<i4")


class StoreWriter:
    """Writes a store document by document; a context manager, which leaves a whole store or nothing.

    Keeps in memory what one `append` brings.

    Args:
        folder: becomes the store when the context is left.
        tokenizer: gives the ids' range, the delimiter and the fingerprint.
        source: facts to keep in the manifest.
        row_length: of packed items: every document is a row of so many tokens, its delimiter included.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: StoreTokenizer,
        source: dict[str, Any] | None = None,
        row_length: int | None = None,
    ) -> None:
        self.folder, self.tokenizer, self.row_length = folder, tokenizer, row_length
        self.dtype = token_dtype(tokenizer.size)
        self.documents = self.tokens = self.bytes = 0
        self._facts: dict[str, Any] = {"kind": KIND, "version": VERSION, "source": source or {}}
        self._delimiter = np.array([tokenizer.delimiter])

    def append_rows(self, rows: np.ndarray, learnt: np.ndarray, text_bytes: int) -> None:
        """Add rows of packed items.

        Args:
            rows: (rows, row_length) integers, each ending in a delimiter.
            learnt: (rows, row_length) uint8: what of each is learnt, 0 for nothing.
            text_bytes: bytes of the text that is learnt.

        Raises:
            CupolaError: as `append`.
        """
        self.append(list(rows[:, :-1]), text_bytes)
        self._learnt.write(learnt.astype(np.uint8).tobytes())

    def append(self, documents: Sequence[np.ndarray], text_bytes: int) -> None:
        """Add documents, without their delimiters.

        Args:
            documents: the ids of each, (tokens,) integers.
            text_bytes: bytes of their text together.

        Raises:
            CupolaError: an id is not of the tokenizer's vocabulary; a document is too long for the format;
                the disk is full.
        """
        if not documents:
            return
        parts = [part for document in documents for part in (document, self._delimiter)]
        block = np.concatenate(parts)
        if block.min() < 0 or block.max() >= self.tokenizer.size:
            raise CupolaError(
                f"{self.folder}: a token id is not below the vocabulary's {self.tokenizer.size}"
            )
        lengths = np.fromiter((len(document) + 1 for document in documents), np.int64, len(documents))
        if lengths.max() > LONGEST_DOCUMENT:
            raise CupolaError(f"{self.folder}: a document has over {LONGEST_DOCUMENT} tokens; cut it up")
        self._bin.write(block.astype(self.dtype).tobytes())
        self._lengths.write(lengths.astype("<i4").tobytes())
        self.documents += len(documents)
        self.tokens += len(block)
        self.bytes += text_bytes

    def __enter__(self) -> Self:
        self._whole = storage.new_folder(self.folder, self._facts)
        self._aside = self._whole.__enter__()
        self._bin = (self._aside / BIN).open("wb")
        self._lengths = (self._aside / LENGTHS).open("wb")
        self._files = [self._bin, self._lengths]
        if self.row_length is not None:
            self._learnt = (self._aside / LEARNT).open("wb")
            self._files.append(self._learnt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._whole.__exit__(type(failure), failure, failure.__traceback__)
                raise
        else:
            for file in self._files:
                with contextlib.suppress(OSError):  # on a full disk closing fails as writing did
                    file.close()
        self._whole.__exit__(kind, error, trace)

    def _finish(self) -> None:
        for file in self._files:
            file.close()
        write_index(self._aside / IDX, self.dtype, self._aside / LENGTHS)
        (self._aside / LENGTHS).unlink()
        if self.row_length is not None:
            self._facts["row_length"] = self.row_length
        self._facts |= {
            "dtype": self.dtype.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "tokenizer": {
                "fingerprint": self.tokenizer.fingerprint,
                "size": self.tokenizer.size,
                "delimiter": self.tokenizer.delimiter,
            },
        }


class TokenStore:
    """A store, open for reading.

    Attributes:
        tokens: (length,) uint16 or int32, a read-only memory map.
        documents: number of documents.
        delimiter: id that ends each document.
        vocabulary: every id is below it.
        bytes: bytes of the text.
        fingerprint: of the tokens and the tokenizer.
        tokenizer_fingerprint: of the tokenizer.
        source: facts of the source.
        row_length: of packed items, tokens of each document; None of text.
        learnt: (length,) uint8, 0 where a token is not learnt, a read-only memory map; None where all are.
    """

    row_length: int | None = None
    learnt: np.ndarray | None = None
    tokens: np.ndarray
    documents: int
    delimiter: int
    vocabulary: int
    bytes: int
    fingerprint: str
    tokenizer_fingerprint: str
    source: dict[str, Any]

    def __init__(self, folder: Path, tokenizer: StoreTokenizer | None = None) -> None:
        """Open the store in `folder`.

        Args:
            tokenizer: the tokenizer that it must have been made with, if that matters.

        Raises:
            CupolaError: it is damaged.
            InputError: it is no store, or was made with another tokenizer.
        """
        self.path = folder
        _refuse_strangers(folder)
        try:
            manifest = storage.verify(folder, contents=False)
        except CupolaError as error:
            raise CupolaError(str(error), _mend(folder)) from None
        if manifest.get("kind") != KIND or manifest.get("version") != VERSION:
            raise CupolaError(
                f"{folder}: is not a token store of version {VERSION}"
                f" ({manifest.get('kind', 'no kind')}, version {manifest.get('version')})",
                _mend(folder),
            )
        made_with = manifest["tokenizer"]
        self.documents, self.bytes = manifest["documents"], manifest["bytes"]
        self.source = manifest["source"]
        self.delimiter, self.vocabulary = made_with["delimiter"], made_with["size"]
        self.tokenizer_fingerprint = made_with["fingerprint"]
        hashes = [manifest["files"][name]["sha256"] for name in (BIN, LEARNT) if name in manifest["files"]]
        self.fingerprint = _fingerprint("".join(hashes), self.tokenizer_fingerprint)
        self._open(folder / BIN, folder / IDX)
        self.row_length = manifest.get("row_length")
        if self.row_length is not None:
            self.learnt = mapped_tokens(folder / LEARNT, np.dtype("u1"))
        said = (manifest["tokens"], manifest["documents"], manifest["dtype"])
        found = (self.length, self.index.documents, self.index.dtype.name)
        if said != found:
            raise CupolaError(f"{folder}: manifest and index disagree, {said} and {found}", _mend(folder))
        if tokenizer is not None and tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise InputError(
                f"{folder}: was made with another tokenizer ({self.tokenizer_fingerprint[:12]}, not"
                f" {tokenizer.fingerprint[:12]}); encode the text again, or use that tokenizer"
            )

    def _open(self, tokens: Path, index: Path) -> None:
        try:
            size = tokens.stat().st_size
        except OSError as error:
            raise CupolaError(f"{tokens}: cannot be read ({error.strerror})") from None
        self.index = Index(index, size)
        self.tokens = mapped_tokens(tokens, self.index.dtype)

    @property
    def length(self) -> int:
        """Number of tokens, delimiters included."""
        return len(self.tokens)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """First token of each document, (documents,) int64."""
        return self.index.document_starts()

    def document(self, number: int) -> np.ndarray:
        """The tokens of a document with its delimiter, a view."""
        starts = self.document_starts
        end = starts[number + 1] if number + 1 < self.documents else self.length
        return self.tokens[starts[number] : end]

    def verify(self, display: Display | None = None) -> None:
        """Read everything: hashes, index, ids, a delimiter at each document's end and nowhere else.

        Raises:
            CupolaError: names what is damaged.
        """
        storage.verify(self.path)
        self.index.check()
        found = 0
        with (display or Display()).task(f"verify {self.path}", self.length, "tokens") as task:
            for block in _blocks(self.tokens):
                if block.min() < 0 or block.max() >= self.vocabulary:
                    raise CupolaError(
                        f"{self.path}: a token id is not below the vocabulary's {self.vocabulary}"
                    )
                found += int(np.count_nonzero(block == self.delimiter))
                task.advance(len(block))
        ends = np.append(self.document_starts, self.length)[1:] - 1
        if self.row_length is not None and self.learnt is not None:
            if (np.diff(ends, prepend=-1) != self.row_length).any() or len(self.learnt) != self.length:
                raise CupolaError(f"{self.path}: its rows are not all of one length", _mend(self.path))
            found = self.documents
        if found != self.documents or (self.tokens[ends] != self.delimiter).any():
            raise CupolaError(f"{self.path}: the delimiter does not end each document", _mend(self.path))


class ForeignStore(TokenStore):
    """A `.bin` and `.idx` that Megatron's tools made, without manifest.

    Opening reads all of it once: the fingerprint is a hash, the bytes are counted.

    Args:
        prefix: the path without `.bin` and `.idx`.
        tokenizer: the one that it was made with.
        display: told if documents do not end with the delimiter.

    Raises:
        CupolaError: one of the files is missing or damaged.
        InputError: the ids are not the tokenizer's, or its delimiter does not occur.
    """

    def __init__(self, prefix: Path, tokenizer: StoreTokenizer, display: Display | None = None) -> None:
        self.path = prefix
        tokens = prefix.with_name(f"{prefix.name}.bin")
        self._open(tokens, prefix.with_name(f"{prefix.name}.idx"))
        self.index.check()
        self.documents, self.source = self.index.documents, {"prefix": prefix.name}
        self.delimiter, self.vocabulary = tokenizer.delimiter, tokenizer.size
        self.tokenizer_fingerprint = tokenizer.fingerprint
        delimiters, self.bytes = self._scan(tokenizer, display or Display())
        if self.documents and not delimiters:
            raise InputError(
                f"{tokens}: the delimiter (id {self.delimiter}) does not occur; it was made with another"
                " tokenizer, or without --append-eod"
            )
        if delimiters != self.documents and display:
            display.warn(f"{tokens}: {self.documents} documents, but {delimiters} delimiters")
        self.fingerprint = _fingerprint(storage.file_sha256(tokens), tokenizer.fingerprint)

    def _scan(self, tokenizer: StoreTokenizer, display: Display) -> tuple[int, int]:
        """(number of delimiters, bytes of text)."""
        sizes = np.array([len(tokenizer.token_bytes(number)) for number in range(tokenizer.size)])
        sizes[tokenizer.delimiter] = 0
        delimiters = size = 0
        with display.task(f"read {self.path}", self.length, "tokens") as task:
            for block in _blocks(self.tokens):
                if block.min() < 0 or block.max() >= tokenizer.size:
                    raise InputError(
                        f"{self.path}.bin: has token ids from {block.min()} to {block.max()}, the tokenizer's"
                        f" are below {tokenizer.size}; it was made with another tokenizer"
                    )
                delimiters += int(np.count_nonzero(block == self.delimiter))
                size += int(sizes[block].sum())
                task.advance(len(block))
        return delimiters, size

    def verify(self, display: Display | None = None) -> None:
        """Opening has read everything there is to check."""


def _blocks(tokens: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens), AT_ONCE):
        yield tokens[start : start + AT_ONCE]


def _fingerprint(tokens_sha256: str, tokenizer_fingerprint: str) -> str:
    return storage.digest({"tokens": tokens_sha256, "tokenizer": tokenizer_fingerprint})


def _in_cache(folder: Path) -> bool:
    return folder.resolve().parent.parent == stores_root().resolve()


def _refuse_strangers(folder: Path) -> None:
    """A folder that a user names, and in which there is no sign of a store, is not a damaged one.

    Raises:
        InputError: it has no manifest, or that of another artefact.
    """
    if _in_cache(folder):
        return
    if not (folder / storage.MANIFEST).exists():
        raise InputError(f"{folder}: is no token store (it has no {storage.MANIFEST})")
    kind = storage.read_manifest(folder).get("kind")
    if kind != KIND:
        whose = f"a {kind}" if kind else "something else"
        raise InputError(f"{folder}: is no token store (its {storage.MANIFEST} is of {whose})")


def _mend(folder: Path) -> str:
    """What helps against damage; only what is in the cache can be deleted without a loss."""
    if _in_cache(folder):
        return f"delete {folder} and run again, and the text is encoded anew"
    return "take it from where it was copied, or encode the text again"
