"""What a reward model learns from pairs, and the figures that tell how well rewards order pairs."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, center_rewards_coefficient: float = 0.0
) -> Tensor:
    """-log P(chosen is preferred) of each pair, where P = sigmoid(difference of the rewards).

    Bradley and Terry 1952; for language models Ouyang et al. 2022, eq. 1; the margin is Llama 2's (Touvron et
    al. 2023, eq. 2). Only differences are learnt, so rewards may drift together: the centring term
    (Eisenstein et al. 2023) holds each pair's sum near 0.

    Args:
        chosen: (P,) fp32, rewards of the preferred completions.
        rejected: (P,) fp32, of the others.
        margin: (P,), or one for all: by how much each chosen reward should exceed its rival's.
        center_rewards_coefficient: weight of the squared sum of a pair's rewards.

    Returns:
        (P,) fp32, to be summed and divided by the number of pairs.
    """
    difference = chosen - rejected
    loss = -F.logsigmoid(difference - margin)
    if center_rewards_coefficient:
        loss = loss + center_rewards_coefficient * (chosen + rejected).square()
    return loss


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Sums over the pairs, to be divided by their number: of a reward model's rewards, or of implicit ones.

    Args:
        chosen: (P,) rewards of the preferred completions.
        rejected: (P,) of the others.

    Returns:
        Scalars, detached: `chosen_reward`, `rejected_reward`, `reward_margin`, and `accuracy`, pairs in the
        right order. Equal rewards are no right order, so a policy that equals its reference has
        accuracy 0.
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
        "reward_margin": (chosen - rejected).sum(),
        "accuracy": (chosen > rejected).float().sum(),
    }
