"""Learning which of two answers is preferred: DPO and its family, over rows of packed pairs.

A microbatch holds whole pairs: of its sequences number 2 i is the chosen answer of pair i, number 2 i + 1 the
rejected one (`corpus.records`). The losses are `objectives.preference_losses`; here their inputs are made of
tokens, from one forward pass for both answers.
"""

import math

import torch
from torch import Tensor, nn

from cupola.data.batch import Answers, Microbatch
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.objectives.base import LossParts
from cupola.objectives.in_twos import InTwos
from cupola.objectives.packed import sequence_lengths, sequence_sums
from cupola.objectives.preference_losses import Completions, PairLosses, PairSettings, pair_losses
from cupola.objectives.reward_losses import pair_metrics
from cupola.recipe.alignment import Preference

REFERENCE = "reference"
"""The figure of a target (`data.batch.Answers`): its log-probability under the reference."""


class PreferencePairs(InTwos):
    """The loss of pairs, its mean over them in nats.

    Args:
        settings: the stage's.
        own_reference: each pair is compared with the log-probabilities that it has just now, as in a stage's
            first step; for dry runs, which have no reference.
    """

    def __init__(self, settings: Preference, own_reference: bool = False) -> None:
        self.settings, self.own_reference = settings, own_reference
        self.pair_settings = PairSettings(
            settings.loss,
            settings.beta,
            settings.label_smoothing,
            settings.simpo_gamma,
            settings.sft_weight,
        )

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """The sums over the pairs of a microbatch.

        Metrics: implicit rewards, their margin and how often it is above 0 (`accuracy`), log-probabilities of
        the answers.
        """
        answers = microbatch.answers
        assert answers is not None, "rows of pairs have answers"
        output = self.forward(module, microbatch)
        log_probs = answer_log_probabilities(module, output.hidden, microbatch)
        chosen, rejected = self._sides(answers, log_probs)
        losses = pair_losses(self.pair_settings, chosen, rejected)
        metrics = _metrics(losses, chosen, rejected)
        if self.settings.sft_weight:  # at the first step of DPO this is ln 2, and the loss isn't
            metrics["preference_loss"] = losses.compared.sum()
        return self.parts(losses.loss, metrics, output, microbatch)

    def expected_first_loss(self, vocabulary: int) -> float:
        """Policy and reference agree, and fresh weights find every token as likely as any other."""
        beta, tokens = self.settings.beta, math.log(vocabulary)
        first = {"hinge": 1.0, "ipo": (1 / (2 * beta)) ** 2, "orpo": tokens + beta * math.log(2)}
        if self.settings.loss == "simpo":
            gamma, flipped = self.settings.simpo_gamma, self.settings.label_smoothing
            first["simpo"] = math.log1p(math.exp(gamma)) - flipped * gamma
        return first.get(self.settings.loss, math.log(2)) + self.settings.sft_weight * tokens

    def _sides(self, answers: Answers, log_probs: Tensor) -> tuple[Completions, Completions]:
        """The chosen and the rejected answers, in the order of the pairs."""
        sums = sequence_sums(log_probs, answers.sequences, answers.count)
        lengths = sequence_lengths(answers.sequences, answers.count)
        reference: Tensor | None = None
        if self.own_reference:
            reference = sums.detach()
        elif self.settings.needs_reference:
            reference = sequence_sums(answers.figures[REFERENCE], answers.sequences, answers.count)
        chosen, rejected = (
            Completions(sums[side::2], lengths[side::2], None if reference is None else reference[side::2])
            for side in (0, 1)
        )
        return chosen, rejected


@torch.no_grad()
def _metrics(losses: PairLosses, chosen: Completions, rejected: Completions) -> dict[str, Tensor]:
    return {
        **pair_metrics(losses.chosen_reward, losses.rejected_reward),
        "chosen_log_prob": chosen.log_probs.sum(),
        "rejected_log_prob": rejected.log_probs.sum(),
    }
