"""Learning a reward from preferences: a scalar head on a language model, over rows of packed pairs.

A microbatch holds whole pairs, as for `objectives.preference`; the loss is `reward_losses.bradley_terry`. The
head of words is not used.
"""

import math

import torch
from torch import nn

from cupola.data.batch import Batch, Microbatch
from cupola.models.stack import Output
from cupola.objectives.answer_scores import answer_scores
from cupola.objectives.base import LossParts
from cupola.objectives.reward_losses import bradley_terry, pair_metrics
from cupola.recipe.alignment import RewardModel
from cupola.recipe.clock import StepValues


class RewardPairs:
    """The loss of pairs, its mean over them in nats."""

    def __init__(self, settings: RewardModel) -> None:
        self.settings = settings

    def at(self, values: StepValues) -> "RewardPairs":
        """The same: no schedule changes it."""
        return self

    def normaliser(self, batch: Batch) -> int:
        """Pairs of the whole batch, over all workers."""
        return max(1, batch.sequences // 2)

    def forward(self, module: nn.Module, microbatch: Microbatch) -> Output:
        """The hidden states of a microbatch."""
        output: Output = module(microbatch.tokens, microbatch.documents)
        return output

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
        total, loss = losses.sum(), losses.detach().sum()
        metrics = pair_metrics(chosen, rejected)
        metrics["reward_mean"] = (metrics["chosen_reward"] + metrics["rejected_reward"]) / 2
        if output.balance is not None:
            # A sum over tokens: here each pair counts as often as a loss.
            balance = output.balance * (len(losses) / microbatch.targets.numel())
            total = total + balance
            metrics["balance"] = balance.detach()
        ends = torch.stack([rewards.detach().min(), rewards.detach().max()])
        return LossParts(total, loss, metrics, output.loads, extremes={"reward": ends})

    def expected_first_loss(self, vocabulary: int) -> float:
        """The head is 0 at first, and so is every reward."""
        return math.log1p(math.exp(self.settings.margin))
