"""Losses of policies that learn from their own completions: PPO and the GRPO family, on packed tokens.

Tokens are flat (`objectives.packed`): (N,) of the completions of one microbatch, whole completions each. A
loss is a sum over them, and `policy_normaliser` says what the whole batch divides it by; so the gradient is
that of one mean, however the batch is cut. Completions that were cut short are masked by leaving their tokens
out, of N and of the normaliser's tokens; they stay in the group's baseline, and among the normaliser's
sequences, as in TRL.

Names and defaults are TRL's, against which `tests/objectives/test_against_trl.py` holds values and gradients.
TRL's `bnpo` (mean over the tokens of a local batch) is `dapo` here, where there is one batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cupola.objectives.packed import sequence_lengths, sequence_sums

LossType = Literal["grpo", "dapo", "dr_grpo", "cispo"]
Level = Literal["token", "sequence", "sequence_sum"]
KlEstimator = Literal["k1", "k2", "k3", "k3_ratio"]

EXPONENT = 20.0
"""Exponents are held within this, where exp overflows no fp32; beyond it there is no gradient."""


@dataclass(frozen=True)
class PolicySettings:
    """Which loss, and its constants.

    Attributes:
        loss_type:
            grpo: mean over completions of their means over tokens (Shao et al. 2024, eq. 3).
            dapo: mean over all tokens of the batch (Yu et al. 2025, eq. 8).
            dr_grpo: sum over the tokens, divided by completions times `max_completion_length`, so that no
                completion's length shapes the weight of its tokens (Liu et al. 2025).
            cispo: not the surrogate is clipped but the ratio, as a constant weight of the log-probabilities,
                so that every token keeps a gradient (MiniMax 2025, eq. 4); mean over all tokens.
        epsilon: the ratio may fall by so much where the advantage is negative.
        epsilon_high: the ratio may rise by so much where the advantage is positive (DAPO's clip-higher); None
            for `epsilon`. Of cispo it is the largest weight itself, and must be given.
        delta: largest ratio where the advantage is negative (dual clip, Ye et al. 2020); None for no limit.
        importance_sampling_level:
            token: a ratio for each token.
            sequence: one for each completion, the geometric mean of its tokens' (GSPO, Zheng et al. 2025).
            sequence_sum: one for each completion, the product of its tokens', as RLOO's; with loss_type grpo.
        beta: weight of the KL to the reference in the loss; 0 needs no reference.
        kl_estimator: see `kl_estimates`; k3_ratio is TRL's default (`use_bias_correction_kl`).
        max_completion_length: dr_grpo's constant length, in tokens.

    Raises:
        ValueError: constants that contradict each other.
    """

    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    importance_sampling_level: Level = "token"
    beta: float = 0.0
    kl_estimator: KlEstimator = "k3_ratio"
    max_completion_length: int = 256

    def __post_init__(self) -> None:
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.delta is not None):
            raise ValueError("cispo needs epsilon_high, the largest weight of a token, and has no delta")
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(
                f"delta is {self.delta}: it must be above 1 + epsilon_high, {1 + self.clip_high}"
            )

    @property
    def clip_high(self) -> float:
        """`epsilon_high`, or `epsilon` where it is not given."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True, eq=False)
class PolicyTokens:
    """Tokens of a microbatch's completions, side by side.

    Attributes:
        log_probs: (N,) fp32, under the policy that learns, at the temperature of sampling; has the gradient.
        advantages: (N,) fp32, of each token; of completions, `advantages[sequence]`.
        sequence: (N,) int64, number of each token's completion.
        count: how many completions there are.
        old_log_probs: (N,) fp32, under the policy that sampled; None where that is the policy that learns,
            once for each generation: the ratio is 1, the gradient REINFORCE's.
        reference_log_probs: (N,) fp32, under the reference model; needed where beta is not 0.
    """

    log_probs: Tensor
    advantages: Tensor
    sequence: Tensor
    count: int
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """What a microbatch comes to.

    Attributes:
        sum: fp32 scalar to differentiate, to be divided by the batch's `policy_normaliser`.
        policy: the same without the KL; detached.
        metrics: sums over the tokens, to be divided by the tokens of the batch, whatever the loss is divided
            by; detached. `clip_low` and `clip_high`: tokens that have no gradient, because their ratio has
            left the range on the side that their advantage pushes it to; `ratio`; `approximate_kl` from the
            policy that sampled to the one that learns; `kl` to the reference (k3), where there is one.
    """

    sum: Tensor
    policy: Tensor
    metrics: dict[str, Tensor]


def policy_loss(settings: PolicySettings, tokens: PolicyTokens) -> PolicyLoss:
    """The loss of a microbatch, and what people watch.

    Raises:
        ValueError: beta is not 0 and there is no reference.
    """
    old = tokens.log_probs.detach() if tokens.old_log_probs is None else tokens.old_log_probs
    log_ratio = log_ratios(
        tokens.log_probs, old, tokens.sequence, tokens.count, settings.importance_sampling_level
    )
    ratio = log_ratio.exp()
    if settings.loss_type == "cispo":
        losses = cispo_losses(ratio, tokens.advantages, tokens.log_probs, settings.clip_high)
    else:
        losses = clipped_losses(
            ratio, tokens.advantages, settings.epsilon, settings.clip_high, settings.delta
        )
    policy = aggregate(losses.detach(), tokens.sequence, tokens.count, settings.loss_type)
    metrics = _metrics(settings, ratio.detach(), log_ratio.detach(), tokens.advantages)
    if settings.beta:
        if tokens.reference_log_probs is None:
            raise ValueError("beta is not 0: the KL needs the log-probabilities of a reference model")
        kl = kl_estimates(tokens.log_probs, tokens.reference_log_probs, settings.kl_estimator, ratio)
        losses = losses + settings.beta * kl
        watched = kl_estimates(tokens.log_probs.detach(), tokens.reference_log_probs, "k3")
        metrics["kl"] = watched.sum()
    return PolicyLoss(aggregate(losses, tokens.sequence, tokens.count, settings.loss_type), policy, metrics)


def policy_normaliser(settings: PolicySettings, sequences: int, tokens: int) -> int:
    """What the sums of a whole batch are divided by, at least 1.

    Args:
        settings: of the loss.
        sequences: completions of the batch, over all microbatches and workers; masked ones too.
        tokens: their tokens that are learnt.
    """
    if settings.loss_type == "grpo":
        return max(1, sequences)
    if settings.loss_type == "dr_grpo":
        return max(1, sequences * settings.max_completion_length)
    return max(1, tokens)


def aggregate(losses: Tensor, sequence: Tensor, count: int, loss_type: LossType) -> Tensor:
    """The sum over a microbatch, in the unit that `policy_normaliser` divides.

    Args:
        losses: (N,) fp32, of each token.
        sequence: (N,) int64.
        count: completions.
        loss_type: grpo sums the completions' means, the others the tokens.

    Returns:
        A fp32 scalar.
    """
    if loss_type == "grpo":
        losses = losses / sequence_lengths(sequence, count)[sequence]
    return losses.sum()


def log_ratios(
    log_probs: Tensor, old_log_probs: Tensor, sequence: Tensor, count: int, level: Level = "token"
) -> Tensor:
    """Log of the importance ratio that each token's loss has, between -`EXPONENT` and `EXPONENT`.

    Args:
        log_probs: (N,) fp32, with gradient.
        old_log_probs: (N,) fp32.
        sequence: (N,) int64.
        count: completions.
        level: see `PolicySettings`; of the two sequence levels, all tokens of a completion have the same.

    Returns:
        (N,) fp32.
    """
    difference = log_probs - old_log_probs
    if level != "token":
        total = sequence_sums(difference, sequence, count)
        if level == "sequence":
            total = total / sequence_lengths(sequence, count).clamp(min=1)
        difference = total[sequence]
    return difference.clamp(-EXPONENT, EXPONENT)


def clipped_losses(
    ratio: Tensor, advantages: Tensor, low: float, high: float, delta: float | None = None
) -> Tensor:
    """PPO's surrogate with its sign turned (Schulman et al. 2017, eq. 7): -min(ratio A, clip(ratio) A).

    Args:
        ratio: (N,) fp32, with gradient.
        advantages: (N,) fp32.
        low: the ratio is clipped at 1 - low.
        high: and at 1 + high.
        delta: where the advantage is negative, at most this ratio counts (dual clip); above 1 + high.

    Returns:
        (N,) fp32.
    """
    clipped = ratio.clamp(1 - low, 1 + high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def cispo_losses(ratio: Tensor, advantages: Tensor, log_probs: Tensor, largest: float) -> Tensor:
    """-min(ratio, largest) A log p, where only log p has a gradient.

    Args:
        ratio: (N,) fp32.
        advantages: (N,) fp32.
        log_probs: (N,) fp32, with gradient.
        largest: weight of a token, at most.

    Returns:
        (N,) fp32.
    """
    return -ratio.detach().clamp(max=largest) * advantages * log_probs


def kl_estimates(
    log_probs: Tensor, reference_log_probs: Tensor, estimator: KlEstimator, ratio: Tensor | None = None
) -> Tensor:
    """Estimates of the KL from policy to reference, of tokens that the policy sampled (Schulman 2020).

    With d = log p - log p of the reference:
        k1: d; unbiased. For rewards: in a loss its expected gradient is 0.
        k2: d^2 / 2; biased, but in a loss its gradient is the KL's, on policy.
        k3: exp(-d) + d - 1; unbiased and never negative, but in a loss its gradient is another divergence's.
        k3_ratio: k3 times the importance ratio with its gradient, which makes the gradient the KL's.

    Args:
        log_probs: (N,) fp32.
        reference_log_probs: (N,) fp32.
        estimator: one of the four.
        ratio: (N,) fp32, differentiable; for k3_ratio.

    Returns:
        (N,) fp32, in nats.

    Raises:
        ValueError: k3_ratio without a ratio.
    """
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    k3 = torch.expm1((-difference).clamp(-EXPONENT, EXPONENT)) + difference
    if estimator == "k3":
        return k3
    if ratio is None:
        raise ValueError("k3_ratio multiplies with the importance ratio, and none is given")
    return k3 * ratio


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, epsilon: float) -> Tensor:
    """PPO's loss of the critic: half the squared error, or that of the clipped estimate where it is larger.

    Args:
        values: (N,) fp32, with gradient.
        old_values: (N,) fp32, the critic's when the completions were sampled.
        returns: (N,) fp32, from `advantages.generalized_advantages`.
        epsilon: how far from the old estimates the new ones may profit.

    Returns:
        (N,) fp32, to be divided by the tokens of the batch.
    """
    clipped = old_values + (values - old_values).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


@torch.no_grad()
def _metrics(
    settings: PolicySettings, ratio: Tensor, log_ratio: Tensor, advantages: Tensor
) -> dict[str, Tensor]:
    metrics = {
        "ratio": ratio.sum(),
        # k3 with the roles turned round: these tokens were sampled by the old policy.
        "approximate_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
    }
    if settings.loss_type == "cispo":
        metrics["clip_high"] = ((ratio > settings.clip_high) & (advantages > 0)).float().sum()
    else:
        low = (ratio < 1 - settings.epsilon) & (advantages < 0)
        high = (ratio > 1 + settings.clip_high) & (advantages > 0)
        metrics |= {"clip_low": low.float().sum(), "clip_high": high.float().sum()}
    return metrics
