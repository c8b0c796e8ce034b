"""Learning from rewards: the policy gradient of answers that the policy has sampled, in packed rows; with a
critic also its loss, from the same forward pass."""

from typing import cast

import torch
from torch import nn

from cupola.data.batch import Answers, Batch, Microbatch
from cupola.models.stack import Output
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.objectives.answer_scores import token_values
from cupola.objectives.base import LossParts
from cupola.objectives.policy_losses import (
    PolicySettings,
    PolicyTokens,
    policy_loss,
    policy_normaliser,
    value_losses,
)
from cupola.recipe.alignment import Policy, Ppo
from cupola.recipe.clock import StepValues

ADVANTAGE, SAMPLED, OLD, REFERENCE = "advantage", "sampled", "old", "reference"
"""Figures of a target (`data.batch.Answers`): its advantage, and its log-probability to the decoder that
sampled it, to the weights that sampled it, and to those that the stage began with."""
VALUE, RETURN = "value", "return"
"""What the critic expected before it when it was sampled, and what it should have expected."""


class PolicyGradient:
    """The loss of sampled answers.

    Args:
        settings: the stage's.
        dry_run: every target has the advantage 1 and is its own reference.
        critic: of a stage whose model has one.
    """

    def __init__(self, settings: Policy, dry_run: bool = False, critic: Ppo | None = None) -> None:
        self.settings, self.dry_run, self.critic = settings, dry_run, critic
        self.policy_settings = PolicySettings(
            loss_type=settings.loss,
            epsilon=settings.epsilon,
            epsilon_high=settings.epsilon_high,
            delta=settings.delta,
            importance_sampling_level=settings.importance_sampling_level,
            beta=settings.beta,
            kl_estimator=settings.kl_estimator,
            max_completion_length=settings.max_completion_length,
        )

    def at(self, values: StepValues) -> "PolicyGradient":
        """The same: no schedule changes it."""
        return self

    def normaliser(self, batch: Batch) -> int:
        """Tokens, answers, or answers times a constant length of the whole batch, over all workers."""
        return policy_normaliser(self.policy_settings, batch.sequences, batch.valid_tokens)

    def forward(self, module: nn.Module, microbatch: Microbatch) -> Output:
        """The hidden states of a microbatch."""
        output: Output = module(microbatch.tokens, microbatch.documents)
        return output

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """The sums over the tokens of a microbatch's answers."""
        answers = cast(Answers, microbatch.answers)
        output = self.forward(module, microbatch)
        log_probs = answer_log_probabilities(module, output.hidden, microbatch, self.settings.temperature)
        figures = answers.figures
        if self.dry_run:
            one, none = torch.ones_like(log_probs), torch.zeros_like(log_probs)
            figures = {ADVANTAGE: one, REFERENCE: log_probs.detach(), VALUE: none, RETURN: one}
        reference = figures[REFERENCE] if self.settings.beta else None
        tokens = PolicyTokens(
            log_probs, figures[ADVANTAGE], answers.sequences, answers.count, figures.get(OLD), reference
        )
        result = policy_loss(self.policy_settings, tokens)
        metrics = dict(result.metrics)
        # What people call the entropy: of sampled tokens the mean of -log p is an unbiased estimate of it.
        metrics["entropy"] = -log_probs.detach().sum()
        if SAMPLED in figures and self.settings.temperature == 1:
            metrics["sampling_gap"] = (figures.get(OLD, log_probs.detach()) - figures[SAMPLED]).abs().sum()
        total = result.sum
        if self.critic is not None:
            values, before = token_values(module, output.hidden, microbatch), figures[VALUE]
            losses = value_losses(values, before, figures[RETURN], self.critic.cliprange_value)
            total = total + self.critic.vf_coef * losses.sum()
            moved = (values.detach() - before).abs() > self.critic.cliprange_value
            metrics |= {"value_loss": losses.detach().sum(), "value_clip": moved.float().sum()}
        if output.balance is not None:
            total = total + output.balance * (len(log_probs) / microbatch.targets.numel())
        return LossParts(total, result.sum.detach(), {}, output.loads, by_token=metrics)

    def expected_first_loss(self, vocabulary: int) -> None:
        """It depends on what is sampled."""
