"""How a model ranks held-out pairs of answers, by the loss that it learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cupola.data.loader import packed_rows
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.objectives.preference import REFERENCE, PreferencePairs
from cupola.parallel.device import Precision, autocast

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Ranking:
    """What a model makes of pairs.

    Attributes:
        accuracy: share of them whose chosen answer has the higher implicit reward.
        loss, reward_margin: means over the pairs.
    """

    pairs: int
    accuracy: float
    loss: float
    reward_margin: float

    @classmethod
    def of(cls, parts: Sequence["Ranking"]) -> "Ranking":
        """Of all pairs of the parts; where there are none, figures are NaN."""
        pairs = sum(part.pairs for part in parts)
        means = {
            name: sum(part.pairs * getattr(part, name) for part in parts) / pairs if pairs else math.nan
            for name in ("accuracy", "loss", "reward_margin")
        }
        return cls(pairs, **means)

    def facts(self) -> dict[str, float]:
        """As JSON."""
        return vars(self)


@torch.no_grad()
def rank_pairs(
    module: LanguageModel,
    objective: PreferencePairs,
    store: TokenStore,
    reference: np.ndarray | None,
    *,
    most_tokens: int | None = None,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "pairs",
) -> Ranking:
    """Read the rows of a store of packed pairs.

    Args:
        module: read in eval mode, left as it was.
        reference: (tokens of the store,) fp32 log-probabilities, where the loss compares with some.
        most_tokens: read only the first rows, which hold no more than so many tokens; at least one.
    """
    length = store.row_length
    assert length is not None
    rows = store.documents if most_tokens is None else min(store.documents, max(1, most_tokens // length))
    figures = {} if reference is None else {REFERENCE: reference}
    at_once = max(1, BATCH_TOKENS // length)
    device = next(module.parameters()).device
    pairs, sums = 0, dict.fromkeys(("loss", "accuracy", "reward_margin"), 0.0)
    with (
        in_eval_mode(module),
        (display or Display()).task(title, rows * length, "tokens") as task,
        autocast(device, precision),
    ):
        for first in range(0, rows, at_once):
            microbatch = packed_rows(store, first, min(first + at_once, rows), figures)
            assert microbatch.answers is not None
            parts = objective.loss(module, microbatch.to(device))
            pairs += microbatch.answers.count // 2
            for name, value in {**parts.metrics, "loss": parts.loss}.items():
                if name in sums:
                    sums[name] += float(value)
            task.advance(microbatch.tokens.numel())
    return Ranking(pairs, **{name: value / max(1, pairs) for name, value in sums.items()})
