"""What a completion, or a token of it, was worth: what the policy losses multiply the log-probabilities by.

Nothing here has a gradient. Of groups of completions: (prompts, G) rewards, a row the completions of one
prompt; the advantage of a completion is that of each of its tokens. Of PPO: (N,) figures of packed tokens
(`objectives.packed`), over all completions of a batch at once.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cupola.objectives.packed import discounted_sums, is_last

ScaleRewards = Literal["group", "batch", "none"]

SPREAD_EPSILON = 1e-4
"""Added to a standard deviation of rewards before dividing by it, as in TRL."""

VARIANCE_EPSILON = 1e-8
"""Added to a variance before whitening."""


def zero_spread(rewards: Tensor) -> Tensor:
    """Which groups have rewards that are all equal, and so nothing to learn from.

    DAPO's dynamic sampling (Yu et al. 2025) leaves them out; everybody should report their share.

    Args:
        rewards: (prompts, G) fp32.

    Returns:
        (prompts,) bool.
    """
    return rewards.amax(1) == rewards.amin(1)


def group_advantages(rewards: Tensor, scale_rewards: ScaleRewards = "group") -> Tensor:
    """GRPO: the reward over the group's mean (Shao et al. 2024, section 4.1.2).

    Args:
        rewards: (prompts, G) fp32, finite, G at least 2.
        scale_rewards: group: divided by the group's standard deviation, as in the paper; batch: by that of
            all rewards; none: not divided (Dr. GRPO, Liu et al. 2025: dividing gives questions that are
            nearly always or nearly never solved more weight).

    Returns:
        (prompts, G) fp32; exactly 0 where the group's rewards are all equal.

    Raises:
        ValueError: groups of one completion, whose mean is no baseline.
    """
    _refuse_single(rewards)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (rewards.std(1, keepdim=True) + SPREAD_EPSILON)
    elif scale_rewards == "batch":
        advantages = advantages / (rewards.std() + SPREAD_EPSILON)
    # A mean of equal numbers may miss them by a rounding, which dividing by a deviation of 0 would magnify.
    return advantages.masked_fill(zero_spread(rewards)[:, None], 0.0)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """RLOO: the reward over the mean of the group's others (Ahmadian et al. 2024).

    It is G / (G - 1) times the reward over the group's mean, and unlike that an unbiased baseline.

    Args:
        rewards: (prompts, G) fp32, G at least 2.

    Returns:
        (prompts, G) fp32.

    Raises:
        ValueError: groups of one completion.
    """
    _refuse_single(rewards)
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / others


def _refuse_single(rewards: Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards are {tuple(rewards.shape)}: they must be (prompts, G) with G at least 2")


def whiten(values: Tensor, mask: Tensor | None = None, shift_mean: bool = True) -> Tensor:
    """Values scaled to variance 1, and shifted to mean 0.

    REINFORCE++ (Hu 2025) is this of all advantages of a batch; PPO's advantages are whitened over its tokens.

    Args:
        values: any shape, fp32.
        mask: bool, of the same shape: which values count; None for all.
        shift_mean: False keeps the mean, as for rewards.

    Returns:
        The same shape, 0 where the mask is False. The variance is the unbiased one; of fewer than two values
        it counts as 1.
    """
    kept = values if mask is None else values[mask]
    mean = kept.mean() if kept.numel() else values.new_zeros(())
    variance = kept.var() if kept.numel() > 1 else values.new_ones(())
    whitened = (values - mean) * torch.rsqrt(variance + VARIANCE_EPSILON)
    if not shift_mean:
        whitened = whitened + mean
    return whitened if mask is None else whitened.masked_fill(~mask, 0.0)


def soft_overlong_punishment(lengths: Tensor, max_completion_length: int, cache: int) -> Tensor:
    """What DAPO adds to the reward of completions that come near the limit (Yu et al. 2025, eq. 13).

    Args:
        lengths: (...) int64, tokens of each completion.
        max_completion_length: the limit.
        cache: the last tokens before the limit, over which the punishment grows from 0 to -1; at least 1.

    Returns:
        (...) fp32, from -1 to 0.
    """
    over = lengths - (max_completion_length - cache)
    return -(over.float() / cache).clamp(0, 1)


def token_rewards(
    scores: Tensor, log_probs: Tensor, reference_log_probs: Tensor, sequence: Tensor, kl_coef: float
) -> Tensor:
    """PPO's reward of each token: the KL to the reference is paid for as it arises, the score comes at the
    end.

    -kl_coef * (log p - log p of the reference), the k1 estimate, and at each completion's last token its
    score (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022).

    Args:
        scores: (S,) fp32, of the reward model or a program.
        log_probs: (N,) fp32, under the policy that sampled.
        reference_log_probs: (N,) fp32.
        sequence: (N,) int64.
        kl_coef: weight of the KL, 0 or more.

    Returns:
        (N,) fp32.
    """
    penalty = -kl_coef * (log_probs.detach() - reference_log_probs)
    return penalty + torch.where(is_last(sequence), scores[sequence], 0.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, sequence: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) within each completion.

    Args:
        rewards: (N,) fp32, what came of each token.
        values: (N,) fp32, the critic's estimate before the token, of the rewards from it on; detached here.
            After a completion's last token it is 0, for those that were cut short too.
        sequence: (N,) int64.
        gamma: discount of later rewards.
        lam: 0 trusts the critic alone, 1 the rewards alone.

    Returns:
        Advantages, not whitened, and returns (advantages + values), what the critic learns: (N,) fp32 each.
    """
    values = values.detach()
    following = values.new_zeros(len(values))
    following[:-1] = values[1:]
    following = following.masked_fill(is_last(sequence), 0.0)
    errors = rewards + gamma * following - values
    advantages = discounted_sums(errors, sequence, gamma * lam)
    return advantages, advantages + values


@dataclass(frozen=True)
class AdaptiveKl:
    """A KL coefficient that steers the KL towards a target (Ziegler et al. 2019, section 2.2).

    Attributes:
        coefficient: the KL's weight now; all of the state there is.
        target: KL per completion, in nats.
        horizon: over how many completions the coefficient may grow by a factor of about 1.2.
    """

    coefficient: float
    target: float
    horizon: int

    def after(self, kl: float, completions: int) -> "AdaptiveKl":
        """The controller after a batch.

        Args:
            kl: mean over its completions of the KL, summed over each one's tokens.
            completions: how many they were.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coefficient=self.coefficient * (1 + error * completions / self.horizon))
