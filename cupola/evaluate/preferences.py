"""How a model ranks held-out pairs of answers, by the loss that it learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from cupola.data.batch import Answers
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.evaluate.reading import reading
from cupola.models.stack import LanguageModel
from cupola.objectives.preference import REFERENCE, PreferencePairs
from cupola.parallel.device import Precision


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
    figures = {} if reference is None else {REFERENCE: reference}
    pairs, sums = 0, dict.fromkeys(("loss", "accuracy", "reward_margin"), 0.0)
    with reading(module, store, most_tokens, precision, display, title, figures) as rows:
        for microbatch in rows:
            parts = objective.loss(module, microbatch)
            pairs += cast(Answers, microbatch.answers).count // 2
            for name, value in {**parts.metrics, "loss": parts.loss}.items():
                if name in sums:
                    sums[name] += float(value)
    return Ranking(pairs, **{name: value / max(1, pairs) for name, value in sums.items()})
