"""Learning a reward from preferences: a scalar head on a language model, over rows of packed pairs.

A microbatch holds whole pairs, as for `objectives.preference`; the loss is `reward_losses.bradley_terry`. The
head of words is not used.
"""

import math

import torch
from torch import nn

from cupola.data.batch import Microbatch
from cupola.objectives.answer_scores import answer_scores
from cupola.objectives.base import LossParts
from cupola.objectives.in_twos import InTwos
from cupola.objectives.reward_losses import bradley_terry, pair_metrics
from cupola.recipe.alignment import RewardModel


class RewardPairs(InTwos):
    """The loss of pairs, its mean over them in nats."""

    def __init__(self, settings: RewardModel) -> None:
        self.settings = settings

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """The sums over the pairs of a microbatch.

        Metrics: rewards, their margin and how often it is above 0 (`accuracy`); `reward_min` and `reward_max`
        of all answers.
        """
        output = self.forward(module, microbatch)
        rewards = answer_scores(module, output.hidden, microbatch)
        chosen, rejected = rewards[::2], rewards[1::2]
        losses = bradley_terry(
            chosen, rejected, self.settings.margin, self.settings.center_rewards_coefficient
        )
        metrics = pair_metrics(chosen, rejected)
        metrics["reward_mean"] = (metrics["chosen_reward"] + metrics["rejected_reward"]) / 2
        ends = torch.stack([rewards.detach().min(), rewards.detach().max()])
        return self.parts(losses, metrics, output, microbatch, extremes={"reward": ends})

    def expected_first_loss(self, vocabulary: int) -> float:
        """The head is 0 at first, and so is every reward."""
        return math.log1p(math.exp(self.settings.margin))
