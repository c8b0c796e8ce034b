"""Losses that learn from preferences: the DPO family on pairs of completions, KTO on single ones.

Pure functions of summed log-probabilities, without a model and without a batch. The loss of a pair depends on
that pair alone, so that sums over microbatches divided by the number of pairs are one mean, however they are
cut; of KTO's only the estimate of the KL is shared, and has a function of its own.

Names and defaults are TRL's, against which `tests/objectives/test_against_trl.py` holds values and gradients.
Where it differs on purpose: the SFT term is a mean over tokens for each completion and then over completions
(Pang et al. 2024), there one mean over all tokens of a microbatch; ORPO's likelihood is of the completion,
there of prompt and completion; the implicit rewards of losses that compare means per token are of those
means.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "simpo", "orpo"]

REFERENCE_FREE: frozenset[PairLoss] = frozenset({"simpo", "orpo"})
"""Losses that compare with no reference model."""

PER_TOKEN: frozenset[PairLoss] = frozenset({"ipo", "sigmoid_norm", "simpo", "orpo"})
"""Losses of log-probabilities per token of the completion; the others' are sums."""

SMOOTHED: frozenset[PairLoss] = frozenset({"sigmoid", "robust", "sigmoid_norm", "simpo"})
"""Losses that label smoothing has a meaning for."""

LEAST_NEGATIVE = -1e-6
"""The largest mean log-probability that odds are made of: those of a certain completion are infinite."""


@dataclass(frozen=True)
class PairSettings:
    """Which loss, and its constants.

    Attributes:
        loss_type:
            sigmoid: DPO (Rafailov et al. 2023, eq. 7); with label smoothing the cDPO (Mitchell 2023).
            robust: unbiased where labels flip with probability `label_smoothing` (Chowdhury et al. 2024).
            ipo: (Azar et al. 2023, eq. 17), of log-ratios per token. The paper writes their sums; TRL reports
                from its authors that the published results are of the means.
            hinge: max(0, 1 - margin) (SLiC, Zhao et al. 2023; with a reference: RSO, Liu et al. 2023).
            sigmoid_norm: DPO of log-ratios per token.
            simpo: log-probabilities per token, no reference (Meng et al. 2024, eq. 6).
            orpo: likelihood of the chosen plus odds ratio, no reference (Hong et al. 2024, eqs. 6 and 7).
        beta: scale of the log-ratios (ipo: tau; orpo: the paper's lambda); above 0.
        label_smoothing: probability that a pair is labelled the wrong way round, below 0.5.
        simpo_gamma: by how much SimPO wants the chosen's reward to exceed the rejected's.
        sft_weight: of -log p(chosen) per token, added to the loss.

    Raises:
        ValueError: a constant is out of its range, or smoothing is asked of a loss that has none.
    """

    loss_type: PairLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 0.5"
            )
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"{self.loss_type} has no label smoothing; these have: {', '.join(sorted(SMOOTHED))}"
            )


@dataclass(frozen=True, eq=False)
class Completions:
    """What the losses need of S completions.

    Attributes:
        log_probs: (S,) fp32, log p(completion | prompt) under the policy, summed over its tokens.
        lengths: (S,) int64, its tokens, at least 1.
        reference: (S,) fp32, the same as `log_probs` under the reference model; None where there is none.
    """

    log_probs: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    def per_token(self) -> Tensor:
        """(S,) mean log-probability of a token under the policy."""
        return self.log_probs / self.lengths

    def log_ratios(self) -> Tensor:
        """(S,) log p(completion) of the policy over the reference's."""
        if self.reference is None:
            raise ValueError("this loss compares with a reference model, and none is given")
        return self.log_probs - self.reference


@dataclass(frozen=True, eq=False)
class PairLosses:
    """What a preference loss makes of P pairs.

    Attributes:
        loss: (P,) fp32, to be summed and divided by the number of pairs.
        compared: (P,) the loss without what `sft_weight` adds; detached.
        chosen_reward: (P,) implicit reward of each chosen completion, beta times what the loss compares;
            detached.
        rejected_reward: (P,) the same of each rejected one.
    """

    loss: Tensor
    compared: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def pair_losses(settings: PairSettings, chosen: Completions, rejected: Completions) -> PairLosses:
    """The loss of each pair, where chosen and rejected answer the same prompt.

    With a policy that equals its reference, sigmoid, sigmoid_norm and robust are ln 2, hinge is 1 and ipo
    1 / (2 beta)^2.

    Raises:
        ValueError: the loss needs a reference and there is none.
    """
    beta = settings.beta
    chosen_score, rejected_score = _scores(settings, chosen), _scores(settings, rejected)
    margin = chosen_score - rejected_score
    if settings.loss_type == "hinge":
        loss = F.relu(1 - beta * margin)
    elif settings.loss_type == "ipo":
        loss = (margin - 1 / (2 * beta)).square()
    elif settings.loss_type == "orpo":
        loss = -chosen_score - beta * F.logsigmoid(_log_odds(chosen_score) - _log_odds(rejected_score))
    elif settings.loss_type == "simpo":
        loss = _log_loss(beta * margin - settings.simpo_gamma, settings)
    else:
        loss = _log_loss(beta * margin, settings)
    compared = loss.detach()
    if settings.sft_weight:
        loss = loss - settings.sft_weight * chosen.per_token()
    return PairLosses(loss, compared, beta * chosen_score.detach(), beta * rejected_score.detach())


def _scores(settings: PairSettings, completions: Completions) -> Tensor:
    """(S,) what the loss compares."""
    if settings.loss_type in REFERENCE_FREE:
        return completions.per_token()
    score = completions.log_ratios()
    return score / completions.lengths if settings.loss_type in PER_TOKEN else score


def _log_loss(margin: Tensor, settings: PairSettings) -> Tensor:
    """-log sigmoid(margin), where some labels may be the wrong way round."""
    flipped = settings.label_smoothing
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    if settings.loss_type == "robust":
        return ((1 - flipped) * right - flipped * wrong) / (1 - 2 * flipped)
    return (1 - flipped) * right + flipped * wrong if flipped else right


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
    log_prob = log_prob.clamp(max=LEAST_NEGATIVE)
    return log_prob - torch.log(-torch.expm1(log_prob))


@dataclass(frozen=True, eq=False)
class KtoLosses:
    """What KTO makes of S completions.

    Attributes:
        loss: (S,) fp32, to be summed and divided by the number of completions.
        reward: (S,) implicit reward, beta times the log-ratio; detached.
    """

    loss: Tensor
    reward: Tensor


def kto_kl(mismatched: Completions) -> Tensor:
    """KTO's estimate of the KL from reference to policy: the mean log-ratio of mismatched completions, at
    least 0.

    Args:
        mismatched: completions of the batch, each after the prompt of another. At least one; better all.

    Returns:
        A fp32 scalar, detached. It is the batch's: all of its microbatches are given the same.
    """
    return mismatched.log_ratios().detach().mean().clamp(min=0)


def kto_losses(
    completions: Completions,
    desirable: Tensor,
    kl: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KtoLosses:
    """1 - sigmoid of the reward over the KL for desirable completions, of the KL over it for the others.

    Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 7).

    Args:
        completions: with their reference.
        desirable: (S,) bool.
        kl: scalar, from `kto_kl`.
        beta: scale of the log-ratios.
        desirable_weight: of a desirable completion's loss; the paper (eq. 8) wants its ratio to the other
            weight, times that of the numbers of completions, between 1 and 4/3.
        undesirable_weight: of an undesirable one's.
    """
    ratios = completions.log_ratios()
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.full_like(ratios, undesirable_weight).masked_fill(desirable, desirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where x is large.
    loss = weights * torch.sigmoid(-beta * signs * (ratios - kl))
    return KtoLosses(loss, beta * ratios.detach())
