"""Learning from answers that are wanted and others that are not: KTO, over rows of packed rated answers.

Of a microbatch's sequences number 2 i is the answer i, number 2 i + 1 another's answer after its prompt
(`corpus.items`); which answers are wanted the marks of what is learnt say. The KL that rewards are held
against is estimated from the mismatched ones of the same microbatch, as TRL has it, so a small microbatch
makes it noisy. The loss is `objectives.preference_losses`'; here its inputs are made of tokens, from one
forward pass for all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cupola.data.batch import REJECTED, Answers, Microbatch
from cupola.models.stack import Output
from cupola.objectives.answer_log_probabilities import answer_log_probabilities
from cupola.objectives.base import LossParts
from cupola.objectives.in_twos import InTwos
from cupola.objectives.packed import sequence_lengths, sequence_sums
from cupola.objectives.preference import REFERENCE
from cupola.objectives.preference_losses import Completions, kto_kl, kto_losses
from cupola.recipe.alignment import Kto


@dataclass(frozen=True, eq=False)
class Ratings:
    """Log-probabilities of the sequences of a microbatch, or of many, in the order of its answers.

    Attributes:
        policy, reference: (2 S,) fp32, summed over the tokens of each.
        lengths: (2 S,) int64.
        desirable: (2 S,) bool, of each answer; that of the mismatched ones means nothing.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor
    desirable: Tensor

    @classmethod
    def of(cls, answers: Answers, log_probs: Tensor, reference: Tensor | None = None) -> "Ratings":
        """Those of a microbatch.

        Args:
            log_probs: (N,) of what is learnt.
            reference: (N,) the same under the reference; by default policy and reference agree.
        """
        sequences, count = answers.sequences, answers.count
        policy = sequence_sums(log_probs, sequences, count)
        kinds = answers.kinds.new_zeros(count).scatter(0, sequences, answers.kinds)
        return cls(
            policy,
            policy.detach() if reference is None else sequence_sums(reference, sequences, count),
            sequence_lengths(sequences, count),
            kinds != REJECTED,
        )

    @classmethod
    def joined(cls, parts: list["Ratings"]) -> "Ratings":
        """Of all sequences of the parts, of which there is at least one."""
        fields = ("policy", "reference", "lengths", "desirable")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))

    def on_cpu(self) -> "Ratings":
        """The same in the host's memory."""
        return Ratings(self.policy.cpu(), self.reference.cpu(), self.lengths.cpu(), self.desirable.cpu())

    def losses(self, settings: Kto) -> "RatedLosses":
        """The losses of the answers, held against the KL that the mismatched ones show."""
        answered, mismatched = (
            Completions(self.policy[side::2], self.lengths[side::2], self.reference[side::2])
            for side in (0, 1)
        )
        desirable = self.desirable[::2]
        # A microbatch that only fills a rank's share has none.
        kl = kto_kl(mismatched) if len(desirable) else self.policy.new_zeros(())
        found = kto_losses(
            answered, desirable, kl, settings.beta, settings.desirable_weight, settings.undesirable_weight
        )
        return RatedLosses(found.loss, found.reward, desirable, kl)


@dataclass(frozen=True, eq=False)
class RatedLosses:
    """Of S answers.

    Attributes:
        loss: (S,) fp32.
        reward: (S,) implicit reward, detached.
        desirable: (S,) bool.
        kl: scalar, in nats an answer.
    """

    loss: Tensor
    reward: Tensor
    desirable: Tensor
    kl: Tensor

    def signed(self) -> Tensor:
        """(S,) the reward of an answer that is wanted, the negative reward of one that is not."""
        return torch.where(self.desirable, self.reward, -self.reward)


class RatedAnswers(InTwos):
    """The loss of rated answers, its mean over them.

    Args:
        settings: the stage's.
        own_reference: each answer is compared with the log-probability that it has just now, as in a stage's
            first step; for dry runs, which have no reference.
    """

    def __init__(self, settings: Kto, own_reference: bool = False) -> None:
        self.settings, self.own_reference = settings, own_reference

    def ratings(self, output: Output, module: nn.Module, microbatch: Microbatch) -> Ratings:
        """What the sequences of a microbatch are worth to the policy and to the reference."""
        answers = microbatch.answers
        assert answers is not None, "rows of rated answers have answers"
        log_probs = answer_log_probabilities(module, output.hidden, microbatch)
        return Ratings.of(answers, log_probs, None if self.own_reference else answers.figures[REFERENCE])

    def loss(self, module: nn.Module, microbatch: Microbatch) -> LossParts:
        """The sums over the answers of a microbatch.

        Metrics: `reward_margin`, the mean of rewards, of answers that are not wanted with the other sign; how
        often that is above 0 (`accuracy`); the share of those that are wanted (`desirable`); `kl`.
        """
        output = self.forward(module, microbatch)
        found = self.ratings(output, module, microbatch).losses(self.settings)
        metrics = {
            "reward_margin": found.signed().sum(),
            "accuracy": (found.signed() > 0).float().sum(),
            "desirable": found.desirable.float().sum(),
            "kl": found.kl * len(found.loss),
        }
        return self.parts(found.loss, metrics, output, microbatch)

    def expected_first_loss(self, vocabulary: int) -> float | None:
        """Policy and reference agree: half the weight, which is one where both weights are."""
        desirable, undesirable = self.settings.desirable_weight, self.settings.undesirable_weight
        return desirable / 2 if desirable == undesirable else None
