"""What each token of a round of answers was worth, with a critic: PPO's rewards, advantages and returns.

A round's answers are taken together: advantages are whitened over all their tokens, and the KL that the
coefficient is steered by is theirs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from cupola.data.batch import Answers, Microbatch
from cupola.objectives.advantages import AdaptiveKl, generalized_advantages, token_rewards, whiten
from cupola.objectives.packed import is_last
from cupola.objectives.policy import ADVANTAGE, OLD, REFERENCE, RETURN, VALUE
from cupola.objectives.policy_losses import kl_estimates
from cupola.recipe.alignment import Ppo


class Critic:
    """Turns scores of answers into advantages of tokens.

    Attributes:
        kl_coef: weight of the KL in the rewards of the next round: all of the state there is. It is the
            recipe's as long as no `target_kl` steers it.
    """

    def __init__(self, settings: Ppo) -> None:
        self.settings, self.kl_coef = settings, settings.kl_coef

    def worth(self, microbatches: Sequence[Microbatch]) -> tuple[list[Microbatch], dict[str, float]]:
        """The microbatches of a round, each token with its advantage and its return.

        Args:
            microbatches: with the figures ADVANTAGE, the score of its answer for every token; OLD, VALUE and,
                where the KL to it counts, REFERENCE.

        Returns:
            They, and what is to be reported of the round.
        """
        parts = [cast(Answers, microbatch.answers) for microbatch in microbatches]
        sequence, count = _numbered(parts)
        figures = {name: torch.cat([part.figures[name] for part in parts]) for name in parts[0].figures}
        old, values = figures[OLD], figures[VALUE]
        reference = figures.get(REFERENCE, old)
        scores = figures[ADVANTAGE][is_last(sequence)]
        rewards = token_rewards(scores, old, reference, sequence, self.kl_coef)
        if self.settings.whiten_rewards:
            rewards = whiten(rewards, shift_mean=False)
        gains, returns = generalized_advantages(
            rewards, values, sequence, self.settings.gamma, self.settings.lam
        )
        if self.settings.whiten_advantages:
            gains = whiten(gains)
        reported = {
            "value": float(values.mean()),
            "returns": float(returns.mean()),
            "explained_variance": _explained(returns, values),
        }
        if REFERENCE in figures:
            reported |= self._pay(old, reference, count)
        cuts = [len(part.places) for part in parts]
        made = zip(microbatches, parts, gains.split(cuts), returns.split(cuts), strict=True)
        return [
            replace(microbatch, answers=_with(part, {ADVANTAGE: gain, RETURN: later}))
            for microbatch, part, gain, later in made
        ], reported

    def _pay(self, old: Tensor, reference: Tensor, count: int) -> dict[str, float]:
        """What the KL was, and what it costs from the next round on."""
        paid, whole = self.kl_coef, float((old - reference).sum()) / count
        if self.settings.target_kl is not None:
            steered = AdaptiveKl(paid, self.settings.target_kl, self.settings.kl_horizon)
            self.kl_coef = steered.after(whole, count).coefficient
        by_token = float(kl_estimates(old, reference, "k3").mean())
        return {"kl": by_token, "kl_per_answer": whole, "kl_coef": paid}


def _numbered(parts: Sequence[Answers]) -> tuple[Tensor, int]:
    """(the number of each token's answer among those of all parts, how many there are)."""
    found, count = [], 0
    for part in parts:
        found.append(part.sequences + count)
        count += part.count
    return torch.cat(found), count


def _with(answers: Answers, figures: dict[str, Tensor]) -> Answers:
    return replace(answers, figures={**answers.figures, **figures})


def _explained(returns: Tensor, values: Tensor) -> float:
    """The share of the returns' variance that the critic foresaw; 0 where they do not vary."""
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread else 0.0
