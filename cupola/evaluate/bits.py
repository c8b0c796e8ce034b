"""Bits per byte: how many bits a model needs to write down a text, divided by the text's bytes of UTF-8.

The figure does not depend on the tokenizer, so models with different vocabularies can be compared, and so
can a compressor. It is the length of a real code: a decoder that knows the model and the number of
documents gets every byte back. Hence these rules.

- Every byte is counted once, and every token is scored once, the first of a document too (it is
  predicted from the delimiter).
- The delimiter that ends a document is scored as well, because a decoder has to know where the text ends;
  its bits count, and it adds no bytes.
- A tokenizer that does not give back every document as it was (it normalises, it drops spaces) is no code
  for the text: that is said, with the number of documents.
- The softmax runs over all rows of the head, those beyond the tokenizer's vocabulary included.

A document that is longer than the context is read in overlapping windows. A window moves by `stride`
tokens, so a token is scored with at least `sequence_length - stride` tokens of context, except at the
document's beginning where there are fewer. A smaller stride gives a slightly better figure and costs
`sequence_length / stride` times the computation; the default, half the context, costs twice the least.
Rows of similar length are computed together; hidden states of tokens that are not scored in a window
never reach the head.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.objectives.cross_entropy import token_losses
from cupola.parallel.device import Precision, autocast

BATCHES_SORTED_TOGETHER = 16
CHARACTERS_ENCODED_TOGETHER = 1_000_000


@dataclass(frozen=True)
class BitsPerByte:
    """What a text costs; sums of several texts are sums of these."""

    bits: float = 0.0
    """Bits of the whole code, the ends of the documents included."""
    bytes: int = 0
    """Bytes of UTF-8."""
    tokens: int = 0
    """Tokens scored: those of the text, and one delimiter for each document."""

    @property
    def bits_per_byte(self) -> float:
        """The figure itself; NaN for a text without bytes."""
        return self.bits / self.bytes if self.bytes else math.nan

    def __add__(self, other: "BitsPerByte") -> "BitsPerByte":
        return BitsPerByte(self.bits + other.bits, self.bytes + other.bytes, self.tokens + other.tokens)

    def facts(self) -> dict[str, float | int | None]:
        """As `--json` shows it: `bits_per_byte` (None for a text without bytes), `tokens`, `bytes`."""
        figure = self.bits_per_byte if self.bytes else None
        return {"bits_per_byte": figure, "tokens": self.tokens, "bytes": self.bytes}


@dataclass(frozen=True)
class Window:
    """A piece of a document as the model reads it, without copying it.

    `ids` are the document's tokens between two delimiters. The inputs are ids[start:end], the targets
    ids[start + 1 : end + 1], of which the first `skip` were scored by an earlier window.
    """

    ids: np.ndarray
    start: int
    end: int
    skip: int

    @property
    def length(self) -> int:
        """Number of inputs."""
        return self.end - self.start


def windows(ids: np.ndarray, sequence_length: int, stride: int) -> Iterator[Window]:
    """Cut a document (with both delimiters: len(ids) - 1 targets) so that each target is scored once."""
    targets = len(ids) - 1
    done = min(sequence_length, targets)
    yield Window(ids, 0, done, 0)
    while done < targets:
        end = min(done + stride, targets)
        start = end - sequence_length
        yield Window(ids, start, end, done - start)
        done = end


@torch.no_grad()
def bits_per_byte(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    sequence_length: int,
    *,
    stride: int | None = None,
    batch_tokens: int = 16_384,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "bits per byte",
) -> BitsPerByte:
    """Score texts, each of which is one document.

    Args:
        module: gives hidden states (B, T, width) for tokens (B, T); read in eval mode, left as it was.
        texts: the documents; an empty one costs the bits of its end.
        sequence_length: the model's context, in tokens.
        stride: how far a window moves, in tokens, 1 to `sequence_length`; by default half the context.
        batch_tokens: inputs computed together; at least one window is.
        precision: "fp32" or "bf16" (autocast; losses are fp32 either way and summed in fp64).
        title: what the display shows.

    Raises:
        InputError: the stride is out of range.
        CupolaError: a loss is not finite.
    """
    stride = max(1, sequence_length // 2) if stride is None else stride
    if not 1 <= stride <= sequence_length:
        raise InputError(
            f"stride must be between 1 and the context of {sequence_length} tokens, not {stride}"
        )
    device = next(module.parameters()).device
    display, sizes = display or Display(), _Sizes()
    nats, tokens = 0.0, 0
    with (
        in_eval_mode(module),
        display.task(title, unit="tokens") as task,
        autocast(device, precision),
    ):
        for batch in _batches(_encoded(tokenizer, texts, sizes), sequence_length, stride, batch_tokens):
            nats += _batch_nats(module, batch, device)
            tokens += sum(window.length - window.skip for window in batch)
            task.total(sizes.targets)
            task.at(tokens)
    if sizes.altered:
        display.warn(
            f"{title}: the tokenizer changes {sizes.altered} of {sizes.documents} documents,"
            " so the figure is not that of the text itself and can't be compared"
        )
    if not math.isfinite(nats):
        raise CupolaError(
            "the held-out loss is not finite: the weights hold NaN or infinite values, or overflow"
        )
    return BitsPerByte(nats / math.log(2), sizes.bytes, tokens)


@dataclass
class _Sizes:
    """Of the texts that have been read so far."""

    documents: int = 0
    altered: int = 0
    bytes: int = 0
    targets: int = 0


def _encoded(tokenizer: Tokenizer, texts: Iterable[str], sizes: _Sizes) -> Iterator[np.ndarray]:
    """Each document's tokens between two delimiters."""
    delimiter = np.array([tokenizer.delimiter])
    for group in _groups(texts):
        sizes.bytes += sum(len(text.encode("utf-8")) for text in group)
        encoded = tokenizer.encode_batch(group)
        sizes.documents += len(group)
        sizes.altered += sum(tokenizer.decode(i) != t for i, t in zip(encoded, group, strict=True))
        sizes.targets += sum(len(ids) + 1 for ids in encoded)
        for ids in encoded:
            yield np.concatenate([delimiter, np.asarray(ids, dtype=np.int64), delimiter])


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if sum(map(len, group)) >= CHARACTERS_ENCODED_TOGETHER or len(group) >= 1000:
            yield group
            group = []
    if group:
        yield group


def _batches(
    documents: Iterable[np.ndarray], sequence_length: int, stride: int, batch_tokens: int
) -> Iterator[list[Window]]:
    """Batches of windows of similar length, at most `batch_tokens` inputs each, padding included."""
    pending: list[Window] = []
    held = 0
    every = (windows(ids, sequence_length, stride) for ids in documents)
    for window in itertools.chain.from_iterable(every):
        pending.append(window)
        held += window.length
        if held >= batch_tokens * BATCHES_SORTED_TOGETHER:
            yield from _by_length(pending, batch_tokens)
            pending, held = [], 0
    yield from _by_length(pending, batch_tokens)


def _by_length(pending: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    pending = sorted(pending, key=lambda window: -window.length)
    while pending:
        rows = max(1, batch_tokens // pending[0].length)
        yield pending[:rows]
        pending = pending[rows:]


def _batch_nats(module: torch.nn.Module, batch: list[Window], device: torch.device) -> float:
    """The summed loss of the windows' targets, in nats. Padding stands on the right, where causal attention
    keeps it from everything that is scored."""
    longest = max(window.length for window in batch)
    inputs = np.zeros((len(batch), longest), dtype=np.int64)
    targets = np.full((len(batch), longest), -1, dtype=np.int64)
    for row, window in enumerate(batch):
        inputs[row, : window.length] = window.ids[window.start : window.end]
        targets[row, window.skip : window.length] = window.ids[
            window.start + window.skip + 1 : window.end + 1
        ]
    wanted = torch.from_numpy(targets).to(device)
    scored = wanted >= 0
    hidden = cast(LanguageModel, module).hidden(torch.from_numpy(inputs).to(device))
    head = cast(torch.Tensor, module.head_weight)
    return float(token_losses(hidden[scored], head, wanted[scored]).double().sum())
