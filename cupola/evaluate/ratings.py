"""What a model makes of held-out answers that are wanted or not, by the loss that it learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.evaluate.reading import reading
from cupola.models.stack import LanguageModel
from cupola.objectives.preference import REFERENCE
from cupola.objectives.rated import RatedAnswers, Ratings
from cupola.parallel.device import Precision
from cupola.recipe.alignment import Kto


def read_ratings(
    module: LanguageModel,
    objective: RatedAnswers,
    store: TokenStore,
    reference: np.ndarray,
    *,
    most_tokens: int | None = None,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "answers",
) -> list[Ratings]:
    """What the sequences of a store of packed rated answers are worth, rows by rows, on the CPU.

    Args:
        module: read in eval mode, left as it was.
        reference: (tokens of the store,) fp32 log-probabilities.
        most_tokens: read only the first rows, which hold no more than so many tokens; at least one.
    """
    figures = {REFERENCE: reference}
    with reading(module, store, most_tokens, precision, display, title, figures) as rows:
        return [objective.ratings(objective.forward(module, here), module, here).on_cpu() for here in rows]


@dataclass(frozen=True)
class Rating:
    """What a model makes of answers.

    Attributes:
        accuracy: share of them whose implicit reward is above 0 where they are wanted, below where not.
        loss: mean over the answers, with the KL of all of them.
        desirable_reward, undesirable_reward: means over those that are wanted, and those that are not; NaN
            where there are none.
        kl: in nats an answer.
    """

    answers: int
    accuracy: float
    loss: float
    desirable_reward: float
    undesirable_reward: float
    kl: float

    @classmethod
    def of(cls, parts: Sequence[Ratings], settings: Kto) -> "Rating":
        """Of all answers of the parts; where there are none, figures are NaN."""
        if not parts:
            return cls(0, *[math.nan] * 5)
        found = Ratings.joined(list(parts)).losses(settings)
        return cls(
            len(found.loss),
            float((found.signed() > 0).float().mean()),
            float(found.loss.mean()),
            float(found.reward[found.desirable].mean()),
            float(found.reward[~found.desirable].mean()),
            float(found.kl),
        )

    def facts(self) -> dict[str, float]:
        """As JSON, whose numbers are finite."""
        return {name: value for name, value in vars(self).items() if math.isfinite(value)}
