"""Held-out rows, read as training reads them: packed, each answer after what was said before it."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from cupola.data.batch import Microbatch
from cupola.data.loader import packed_rows
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.parallel.device import Precision, autocast

BATCH_TOKENS = 16_384
"""Read together, at most; one row at least."""


@contextlib.contextmanager
def reading(
    module: LanguageModel,
    store: TokenStore,
    most_tokens: int | None,
    precision: Precision,
    display: Display | None,
    title: str,
    figures: Mapping[str, np.ndarray] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Iterator[Microbatch]]:
    """The rows of a store of packed items, on the module's device; within it the module is in eval mode, and
    nothing asks for a gradient.

    Args:
        most_tokens: only the first rows, which hold no more than so many tokens; at least one.
        precision: "fp32" or "bf16" (autocast).
        display: shows the progress; None where it is short.
        figures: (tokens of the store,) fp32 each, for `Answers.figures`.
    """
    length = store.row_length
    assert length is not None
    rows = store.documents if most_tokens is None else min(store.documents, max(1, most_tokens // length))
    at_once = max(1, batch_tokens // length)
    device = next(module.parameters()).device
    with (
        torch.no_grad(),
        in_eval_mode(module),
        (display or Display()).task(title, rows * length, "tokens") as task,
        autocast(device, precision),
    ):

        def microbatches() -> Iterator[Microbatch]:
            for first in range(0, rows, at_once):
                microbatch = packed_rows(store, first, min(first + at_once, rows), figures)
                yield microbatch.to(device)
                task.advance(microbatch.tokens.numel())

        yield microbatches()
