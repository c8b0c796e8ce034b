"""Training a byte-level BPE tokenizer on a recipe's text.

Guarantees: the same text gives the same file, whatever the number of threads; only training text is read;
text streams, so that memory holds the distinct pieces of at most `train_bytes` of it. Measured on two cores
with manuals and a dictionary: 6 MB in 3 s, 30 MB in 12 s and 0.7 GB, for 8,192 tokens or 32,768.

The tokenizer: bytes as the alphabet, so every text can be written; pieces as in Llama 3 (`PATTERN`), so a
token never spans two words and a number is cut into groups of three digits; 32 reserved ids in front
(`RESERVED`), so that later stages need no new rows in the embedding. A whole piece that is a token is that
token (`ignore_merges`), which for a trained vocabulary changes no id and saves time.

Where the text has fewer repeated pairs than the vocabulary asks for, training goes on with the smaller
vocabulary and warns: the merges that are missing would each stand for a string that occurs once.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from cupola import storage
from cupola.characters import valid_text
from cupola.corpus.built import build_once
from cupola.corpus.documents import documents, totals
from cupola.corpus.splitting import cut_at_breaks
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display, count, size
from cupola.errors import InputError
from cupola.paths import cache_root
from cupola.recipe import schema

NAMED = (
    "<|endoftext|>",  # between documents
    "<|pad|>",  # fills rows; never a target
    "<|im_start|>",  # opens a message: <|im_start|>user\n...<|im_end|> (ChatML)
    "<|im_end|>",  # ends a message
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|fim_prefix|>",  # filling in the middle (Bavarian et al. 2022)
    "<|fim_middle|>",
    "<|fim_suffix|>",
)
RESERVED = (*NAMED, *(f"<|reserved_{number}|>" for number in range(32 - len(NAMED))))
"""Special tokens in the order of their ids, from 0."""

PATTERN = "|".join(
    (
        r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])",  # English contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word with the space or mark before it
        r"\p{N}{1,3}",  # digits by threes
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # marks, with the ends of lines that follow
        r"\s*[\r\n]+",  # blank lines
        r"\s+(?!\S)",  # spaces but the last before a word
        r"\s+",
    )
)
"""How text is cut into pieces: the published behaviour of Llama 3, which inference engines know."""

VERSION = 1
"""Of everything above: raised whenever the same text would give another tokenizer."""
LEAST_OCCURRENCES = 2
SAMPLE_BYTES = 1_000_000
PIECE = 20_000


@dataclass(frozen=True)
class Trained:
    """A new tokenizer and what it took.

    Attributes:
        bytes: of text that were read.
        seconds: for reading and merging.
        bytes_per_token: on the first megabyte of the text.
    """

    tokenizer: Tokenizer
    bytes: int
    seconds: float
    bytes_per_token: float


def train(
    texts: Iterable[str], vocabulary: int, display: Display | None = None, total_bytes: int | None = None
) -> Trained:
    """Train on texts.

    Args:
        vocabulary: number of ids, the 32 reserved ones and the 256 bytes included.
        total_bytes: of the texts, for the progress bar.

    Raises:
        InputError: there is no text.
    """
    display = display or Display()
    library = _untrained()
    sample: list[str] = []
    read = 0
    begun = time.monotonic()
    with display.task("train the tokenizer", total_bytes, "bytes") as task:

        def reading() -> Iterator[str]:
            nonlocal read
            for text in map(valid_text, texts):
                size = len(text.encode())
                if read < SAMPLE_BYTES:
                    sample.append(text)
                read += size
                yield text
                task.advance(size)
            task.note("merging")

        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=LEAST_OCCURRENCES,
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in RESERVED],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(reading(), trainer)
    if not read:
        raise InputError("there is no text to train the tokenizer on")
    seconds = time.monotonic() - begun
    tokenizer = Tokenizer(library.to_str(pretty=True), "the new tokenizer")
    if tokenizer.size < vocabulary:
        display.warn(
            f"the text ({count(read)} bytes) has too few repeated strings for {vocabulary} tokens;"
            f" the tokenizer has {tokenizer.size}"
        )
    return Trained(tokenizer, read, seconds, bytes_per_token(tokenizer, sample))


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """How many bytes of UTF-8 a token stands for, on average."""
    size = sum(len(text.encode()) for text in texts)
    return size / max(1, sum(len(ids) for ids in tokenizer.encode_batch(texts)))


def train_for(
    settings: schema.Tokenizer, sources: dict[str, Path], weights: dict[str, float], display: Display
) -> Tokenizer:
    """The tokenizer of a recipe: its file, or one trained on its text (from the cache if nothing changed).

    Args:
        sources: source -> folder of gathered text, of which only the training split is read.
        weights: source -> share of the text.

    Raises:
        InputError: the file is none, or there is no text.
    """
    if settings.kind == "file":
        tokenizer = Tokenizer.load(Path(settings.path or "")).with_special(settings.add)
        display.say(f"tokenizer: {settings.path}, {describe(tokenizer)}")
        return tokenizer
    # By contents, since several sources may have taken the same text as their fallback.
    folders = {_text_hash(sources[name]): sources[name] for name in weights}
    shares = dict.fromkeys(folders, 0.0)
    for name, weight in weights.items():
        shares[_text_hash(sources[name])] += weight
    sizes = {text: totals(folder, "train")[1] for text, folder in folders.items()}
    parts = quotas(shares, sizes, settings.train_bytes)
    made_from = {"version": VERSION, "vocabulary": settings.vocabulary, "bytes_of_text": parts}
    target = cache_root() / "tokenizers" / storage.digest(made_from)[:32]

    def build() -> None:
        texts = (
            piece for text, quota in parts.items() for piece in sample(folders[text], quota, sizes[text])
        )
        trained = train(texts, settings.vocabulary, display, sum(parts.values()))
        display.say(
            f"tokenizer: {trained.tokenizer.size} tokens from {size(trained.bytes)} of text,"
            f" {trained.bytes_per_token:.2f} bytes per token,"
            f" {size(trained.bytes / max(trained.seconds, 1e-9))}/s"
        )
        measured = {"bytes": trained.bytes, "bytes_per_token": round(trained.bytes_per_token, 4)}
        facts = {"kind": "tokenizer", "fingerprint": trained.tokenizer.fingerprint, **measured}
        with storage.new_folder(target, {**facts, "made_from": made_from}) as aside:
            trained.tokenizer.save(aside)

    build_once(target, build, display)
    return Tokenizer.load(target).with_special(settings.add)


def describe(tokenizer: Tokenizer) -> str:
    """`32768 tokens, encoded by tiktoken`, or by what and why."""
    reason = f" ({tokenizer.engine_reason})" if tokenizer.engine_reason else ""
    return f"{tokenizer.size} tokens, encoded by {tokenizer.engine}{reason}"


def quotas(weights: dict[str, float], sizes: dict[str, int], total: int) -> dict[str, int]:
    """How many bytes to take of each source: `total` shared by weight; what a source lacks, the others give.

    Raises:
        InputError: none of the sources has text.
    """
    open_ = {name: weight for name, weight in weights.items() if weight > 0 and sizes[name] > 0}
    if not open_:
        raise InputError("there is no text to train the tokenizer on; every source is empty")
    shares: dict[str, int] = {}
    while open_:
        left = total - sum(shares.values())
        whole = sum(open_.values())
        short = [name for name, weight in open_.items() if sizes[name] <= left * weight / whole]
        if not short:
            shares |= {name: max(1, int(left * weight / whole)) for name, weight in open_.items()}
            break
        for name in short:
            shares[name] = sizes[name]
            del open_[name]
    return {name: shares[name] for name in sorted(shares)}


def sample(folder: Path, quota: int, size: int) -> Iterator[str]:
    """Text of the training split, in order and spread evenly over it, `quota` bytes of its `size`.

    Long documents count as several pieces (of about `PIECE` characters), so that a book does not stand for
    its source; the last piece is cut so that the quota is kept. Reads the whole split, at the disk's speed.
    """
    seen = taken = 0
    for document in documents(folder, "train"):
        for piece in cut_at_breaks(document.text, PIECE):
            length = len(piece.encode())
            seen += length
            if taken * size >= seen * quota:
                continue
            if taken + length > quota:
                yield piece.encode()[: quota - taken].decode("utf-8", "ignore")
                return
            taken += length
            yield piece


def _untrained() -> Library:
    library = Library(models.BPE(ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library


def _text_hash(folder: Path) -> str:
    digest: str = storage.read_manifest(folder)["files"]["train.parquet"]["sha256"]
    return digest
