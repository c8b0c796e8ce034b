"""What a reward model makes of held-out pairs: what it prefers, how sure it is, and what else it looks at."""

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
from cupola.objectives.answer_scores import answer_scores
from cupola.objectives.packed import sequence_lengths
from cupola.parallel.device import Precision

BINS = 10
"""Of confidences from 1/2 to 1, of equal width."""


@dataclass(frozen=True)
class PairScores:
    """Rewards of pairs of answers.

    Attributes:
        rewards: (pairs, 2) fp64, of the chosen and the rejected answer.
        lengths: (pairs, 2) int64, their tokens.
    """

    rewards: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, parts: Sequence["PairScores"]) -> "PairScores":
        """All pairs of the parts."""
        rewards = [np.zeros((0, 2)), *(part.rewards for part in parts)]
        lengths = [np.zeros((0, 2), dtype=np.int64), *(part.lengths for part in parts)]
        return cls(np.concatenate(rewards), np.concatenate(lengths))

    def facts(self) -> dict[str, float]:
        """As JSON.

        - pairs, accuracy: share of them whose chosen answer has the higher reward.
        - loss: mean of -log sigmoid(difference of the rewards), in nats.
        - calibration_error: the expected one (Guo et al. 2017) of the probability that the rewards give to
          the answer they prefer: over bins of that probability, the mean distance from it to the share that
          is right, weighted by pairs.
        - length_correlation: Pearson's, of an answer's reward with its number of tokens; 0 where either
          does not vary.
        - reward_margin, reward_min, reward_mean, reward_max: of the pairs, of all answers.

        There must be a pair.
        """
        margins = self.rewards[:, 0] - self.rewards[:, 1]
        return {
            "pairs": len(margins),
            "accuracy": float((margins > 0).mean()),
            "loss": float(np.logaddexp(0.0, -margins).mean()),
            "reward_margin": float(margins.mean()),
            "calibration_error": _calibration_error(margins),
            "length_correlation": _correlation(self.rewards.ravel(), self.lengths.ravel()),
            "reward_min": float(self.rewards.min()),
            "reward_mean": float(self.rewards.mean()),
            "reward_max": float(self.rewards.max()),
        }


def score_pairs(
    module: LanguageModel,
    store: TokenStore,
    *,
    most_tokens: int | None = None,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "pairs",
) -> PairScores:
    """Score the rows of a store of packed pairs.

    Args:
        module: with a scalar head; read in eval mode, left as it was.
        most_tokens: read only the first rows, which hold no more than so many tokens; at least one.
    """
    found = []
    with reading(module, store, most_tokens, precision, display, title) as rows:
        for microbatch in rows:
            answers = cast(Answers, microbatch.answers)
            hidden = module.hidden(microbatch.tokens, microbatch.documents)
            rewards = answer_scores(module, hidden, microbatch).double()
            lengths = sequence_lengths(answers.sequences, answers.count)
            found.append(PairScores(*(part.view(-1, 2).cpu().numpy() for part in (rewards, lengths))))
    return PairScores.of(found)


def _calibration_error(margins: np.ndarray) -> float:
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=(margins > 0) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(margins))


def _correlation(rewards: np.ndarray, lengths: np.ndarray) -> float:
    deviations = rewards.std() * lengths.std()
    if not deviations or not math.isfinite(deviations):
        return 0.0
    return float(((rewards - rewards.mean()) * (lengths - lengths.mean())).mean() / deviations)
