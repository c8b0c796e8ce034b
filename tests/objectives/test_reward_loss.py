import math

import torch

from cupola.objectives.reward_losses import bradley_terry, pair_metrics


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_loss_is_minus_the_log_probability_of_the_preference():
    chosen, rejected = rewards(1.0, -0.5, 2.0), rewards(0.0, 0.5, 2.0)
    expected = [-math.log(1 / (1 + math.exp(-d))) for d in (1.0, -1.0, 0.0)]
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor(expected, dtype=torch.float64))


def test_a_margin_is_a_handicap_of_the_chosen():
    chosen, rejected, margin = rewards(1.0, 0.3), rewards(0.2, 0.4), rewards(0.5, 0.0).detach()
    torch.testing.assert_close(
        bradley_terry(chosen, rejected, margin), bradley_terry(chosen - margin, rejected)
    )


def test_only_centring_sees_what_both_rewards_have_in_common():
    chosen, rejected = rewards(1.0, 0.3), rewards(0.2, 0.4)
    torch.testing.assert_close(bradley_terry(chosen + 5, rejected + 5), bradley_terry(chosen, rejected))
    centred = bradley_terry(chosen, rejected, center_rewards_coefficient=0.01)
    torch.testing.assert_close(
        centred, bradley_terry(chosen, rejected) + 0.01 * torch.tensor([1.44, 0.49], dtype=torch.float64)
    )
    shifted = bradley_terry(chosen + 5, rejected + 5, center_rewards_coefficient=0.01)
    assert (shifted > centred).all()


def test_metrics_are_sums_over_the_pairs_without_a_gradient():
    found = pair_metrics(rewards(1.0, 0.0, 2.0), rewards(0.5, 0.5, 2.0))
    assert {name: value.item() for name, value in found.items()} == {
        "chosen_reward": 3.0,
        "rejected_reward": 3.0,
        "reward_margin": 0.0,
        "accuracy": 1.0,
    }
    assert not any(value.requires_grad for value in found.values())
