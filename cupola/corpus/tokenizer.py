"""The tokenizer: text to ids and back, from any `tokenizer.json`.

Guarantees:
- The ids are those that the `tokenizers` library gives for the file. Where the file is byte-level BPE they
  are computed by tiktoken on the same merges, three times faster (10.6 against 3.4 MB/s of one core);
  `engine` says which, `engine_reason` why not (`cupola.corpus.tiktoken_engine` decides). A text that
  overflows tiktoken's stack (a run of some hundred thousand spaces) goes to `tokenizers` by itself.
- Text never becomes a special token: a literal `<|endoftext|>` in a document is encoded as its characters.
  Added tokens that the file does not call special are part of the vocabulary and are found, as its author
  meant.
- Byte-level tokenizers lose nothing: `decode(encode(text)) == text` for every valid text. A lone surrogate
  (not valid Unicode) becomes U+FFFD.
- Nothing is truncated or padded, and no begin or end token is added, whatever the file says.

Costs: loading takes about 0.1 s for each 10,000 tokens. Encoding runs in threads (the engines release the
interpreter), about 5 microseconds a document of Python each.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cupola import storage
from cupola.characters import valid_text
from cupola.corpus import tiktoken_engine
from cupola.errors import InputError
from cupola.machine import usable_cores

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
DELIMITERS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<|eot|>",
    "<|eod|>",
    "[SEP]",
)
"""Names of the token between documents, the most telling first."""
REPLACEMENT = "\ufffd"
CHUNK_CHARACTERS = 500_000


class Tokenizer:
    """Text to ids and back.

    Attributes:
        size: number of ids; every id is below it.
        delimiter: id of the token between documents.
        special: name -> id of the special tokens.
        fingerprint: SHA-256 (hex) of the file's contents, independent of its layout, and of the delimiter's
            name where the file alone does not say it (none of `DELIMITERS` is in it).
        engine: "tiktoken" or "tokenizers".
        engine_reason: why it is not tiktoken; empty where it is.
    """

    def __init__(self, text: str, origin: str = FILE, end_of_text: str | None = None) -> None:
        """Read the text of a `tokenizer.json`.

        Args:
            origin: how errors name it.
            end_of_text: name of the delimiter if it is none of `DELIMITERS`.

        Raises:
            InputError: it is not a tokenizer, or has no delimiter.
        """
        try:
            self.spec: dict[str, Any] = json.loads(text)
            self._reference = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception for everything
            raise InputError(f"{origin}: is not a tokenizer.json ({error})") from None
        self._text, self.origin = text, origin
        self._reference.no_truncation()
        self._reference.no_padding()
        self._reference.encode_special_tokens = True
        vocabulary = self._reference.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        added = self.spec.get("added_tokens") or []
        self.special: dict[str, int] = {t["content"]: t["id"] for t in added if t.get("special")}
        self.delimiter = self._find_delimiter(vocabulary, end_of_text)
        # Truncation and padding are not read, so they are no part of what the tokenizer is.
        read = {**self.spec, "truncation": None, "padding": None}
        if self._reference.id_to_token(self.delimiter) not in DELIMITERS:
            read["delimiter"] = self.delimiter
        self.fingerprint = storage.digest(read)
        self._byte_level = tiktoken_engine.is_byte_level(self.spec)
        self._added = {t["id"]: t["content"] for t in added}
        self._fast, self.engine_reason = tiktoken_engine.build(self.spec, self._reference)
        self.engine = "tiktoken" if self._fast else "tokenizers"

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or the folder that holds one.

        Raises:
            InputError: there is none, it can't be read, or it has no delimiter.
        """
        path = Path(path).expanduser()
        file = path / FILE if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{file}: there is no such tokenizer") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read ({error})") from None
        return cls(text, str(file), _configured_end(file.with_name(CONFIG)))

    def with_special(self, names: Iterable[str]) -> "Tokenizer":
        """The tokenizer with further special tokens, whose ids follow after its own; tokens that it has stay
        what they are."""
        known = self.ids()
        new = [name for name in dict.fromkeys(names) if name not in known]
        if not new:
            return self
        library = tokenizers.Tokenizer.from_str(self._text)
        library.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False) for name in new]
        )
        end = self._reference.id_to_token(self.delimiter)
        return Tokenizer(library.to_str(pretty=True), self.origin, end)

    def ids(self) -> dict[str, int]:
        """Token, as the file writes it -> id; the special ones are among them."""
        return dict(self._reference.get_vocab(with_added_tokens=True))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, as it was read, and the small file that lets transformers load it."""
        folder.mkdir(parents=True, exist_ok=True)
        names = {token: name for name, token in self.special.items()}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names.get(self.delimiter) or self._reference.id_to_token(self.delimiter),
            "clean_up_tokenization_spaces": False,
        }
        storage.write_text(folder / FILE, self._text)
        storage.write_json(folder / CONFIG, config)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (tokens,) int32; without delimiter."""
        text = valid_text(text)
        ids = self._fast.encode(text) if self._fast else None
        return self._encode_slowly([text])[0] if ids is None else ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of each text, in threads."""
        return list(itertools.chain.from_iterable(self.encode_stream(_chunks(texts))))

    def encode_stream(self, batches: Iterable[list[str]]) -> Iterator[list[np.ndarray]]:
        """`encode` of batch after batch, in order, a few batches ahead of the reader and no more.

        Batches of about `CHUNK_CHARACTERS` keep all threads busy.
        """
        if self._fast is None:  # that library has threads of its own
            yield from (self._encode_slowly([valid_text(text) for text in batch]) for batch in batches)
            return
        threads = usable_cores()
        waiting: list[Future[list[np.ndarray]]] = []
        with ThreadPoolExecutor(threads, "encode") as pool:
            try:
                for batch in batches:
                    waiting.append(pool.submit(self._encode_each, batch))
                    if len(waiting) > 2 * threads:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens by their names; bytes that are no UTF-8 become U+FFFD.

        So do ids beyond the vocabulary: a model's head may have more rows.
        """
        numbers = [int(number) for number in ids]
        if self._byte_level:
            pieces = (self.token_bytes(n) if 0 <= n < self.size else REPLACEMENT.encode() for n in numbers)
            return b"".join(pieces).decode("utf-8", errors="replace")
        return self._reference.decode([n for n in numbers if n < self.size], skip_special_tokens=False)

    def unwritten(self, vocabulary: int) -> frozenset[int]:
        """Ids below `vocabulary` that no text encodes to: special tokens but the delimiter, and rows of a
        larger embedding."""
        special = set(self.special.values()) - {self.delimiter}
        return frozenset(special | set(range(self.size, vocabulary)))

    def token_bytes(self, number: int) -> bytes:
        """The bytes that a token stands for; a special token's are its name.

        Raises:
            IndexError: the id is not one of the vocabulary's.
        """
        if not 0 <= number < self.size:
            raise IndexError(f"token id {number} is not below the vocabulary's {self.size}")
        return self._bytes[number]

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """Bytes of text that each token stands for, (size,) int64; none of a special token."""
        sizes = np.array([len(piece) for piece in self._bytes])
        sizes[list(self.special.values())] = 0
        return sizes

    @cached_property
    def _bytes(self) -> list[bytes]:
        pieces = [REPLACEMENT.encode()] * self.size
        for token, number in self._reference.get_vocab(with_added_tokens=True).items():
            if number in self._added:
                pieces[number] = token.encode()
            elif self._byte_level:
                pieces[number] = tiktoken_engine.to_bytes(token)
            else:
                pieces[number] = _sentencepiece_bytes(token)
        return pieces

    def _encode_each(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def _encode_slowly(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._reference.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _find_delimiter(self, vocabulary: dict[str, int], end_of_text: str | None) -> int:
        for name in (*DELIMITERS, end_of_text):
            if name is not None and name in vocabulary and (name in self.special or not self.special):
                return vocabulary[name]
        names = ", ".join(itertools.islice(self.special, 20)) or "none"
        raise InputError(
            f"{self.origin}: no known token ends a document (special tokens: {names});"
            f' name it in {CONFIG} beside the file, such as {{"eos_token": "</s>"}}'
        )


def _configured_end(config: Path) -> str | None:
    """The `eos_token` of a `tokenizer_config.json`, if there is one."""
    try:
        value = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    return value.get("content") if isinstance(value, dict) else value


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    """Consecutive texts, together about `CHUNK_CHARACTERS` long."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _sentencepiece_bytes(token: str) -> bytes:
    """`▁word` -> b" word", `<0x0A>` -> a newline, as SentencePiece writes them."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()
