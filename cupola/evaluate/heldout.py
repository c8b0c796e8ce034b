"""Held-out text by source: all of it at the end of a stage, a fixed choice of it in the course of training.

The choice is the same whatever the order of the documents, the machine or the step: documents come in the
order of a hash of their text. No document takes more than an eighth of the choice, so that one long
document cannot stand for a source; the rest of it is left out. The choice is a sample: it is for
watching, the whole split is for reporting.
"""

import hashlib
from collections.abc import Iterable, Mapping

import torch

from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.evaluate.bits import BitsPerByte, bits_per_byte
from cupola.parallel.device import Precision

DOCUMENTS_AT_LEAST = 8


def choose_texts(texts: Iterable[str], tokenizer: Tokenizer, tokens: int) -> list[str]:
    """A fixed choice of about `tokens` tokens, independent of the order of `texts`.

    A text is cut (in characters, in proportion) where it would take more than its share or what is left.
    """
    ordered = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode("utf-8")).digest())
    share = max(1, tokens // DOCUMENTS_AT_LEAST)
    chosen, left = [], tokens
    for text in ordered:
        if left <= 0:
            break
        length = len(tokenizer.encode(text))
        allowed = min(share, left)
        if length > allowed:
            text = text[: max(1, len(text) * allowed // length)]
        chosen.append(text)
        left -= min(length, allowed)
    return chosen


def heldout_bits(
    module: torch.nn.Module,
    tokenizer: Tokenizer,
    sources: Mapping[str, Iterable[str]],
    sequence_length: int,
    *,
    stride: int | None = None,
    precision: Precision = "fp32",
    display: Display | None = None,
) -> dict[str, BitsPerByte]:
    """`bits_per_byte` of each source's texts."""
    return {
        name: bits_per_byte(
            module,
            tokenizer,
            texts,
            sequence_length,
            stride=stride,
            precision=precision,
            display=display,
            title=f"held-out text of {name}",
        )
        for name, texts in sources.items()
    }


def combined(results: Mapping[str, BitsPerByte]) -> BitsPerByte:
    """All sources together: bits over bytes, so a source counts by its size."""
    return sum(results.values(), BitsPerByte())
