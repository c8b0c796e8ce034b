import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.objectives.advantages import (
    AdaptiveKl,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    soft_overlong_punishment,
    token_rewards,
    whiten,
    zero_spread,
)
from cupola.objectives.packed import discounted_sums, is_last, sequence_lengths, sequence_sums

LENGTHS = [3, 1, 5, 2]
NUMBERS = [2, 0, 3, 1]  # completions may come in any order


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pack(lengths=LENGTHS, numbers=NUMBERS) -> torch.Tensor:
    each = [n for n, length in zip(numbers, lengths, strict=True) for _ in range(length)]
    return torch.tensor(each, dtype=torch.int64)


def runs(sequence: torch.Tensor) -> list[list[int]]:
    """The tokens of each completion, in the order in which they lie."""
    found: list[list[int]] = []
    for i, number in enumerate(sequence.tolist()):
        if not i or number != sequence[i - 1]:
            found.append([])
        found[-1].append(i)
    return found


def test_sums_lengths_and_ends_of_completions():
    sequence = pack()
    values = random(len(sequence))
    expected = [sum(values[i].item() for i in range(len(sequence)) if sequence[i] == n) for n in range(5)]
    torch.testing.assert_close(
        sequence_sums(values, sequence, 5), torch.tensor(expected, dtype=torch.float64)
    )
    assert sequence_lengths(sequence, 5).tolist() == [1, 2, 3, 5, 0]
    assert is_last(sequence).nonzero().flatten().tolist() == [2, 3, 8, 10]


def test_nothing_packed_is_nothing():
    nothing = pack([], [])
    assert sequence_sums(random(0), nothing, 2).tolist() == [0, 0]
    assert is_last(nothing).tolist() == []
    assert discounted_sums(random(0), nothing, 0.9).tolist() == []


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    discount=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_discounted_sums_are_those_of_a_loop(lengths, discount):
    sequence = pack(lengths, list(range(len(lengths))))
    values = random(len(sequence), seed=len(sequence))
    expected = values.clone()
    for tokens in runs(sequence):
        for i in reversed(tokens[:-1]):
            expected[i] = values[i] + discount * expected[i + 1]
    torch.testing.assert_close(discounted_sums(values, sequence, discount), expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_generalized_advantages_are_those_of_a_loop(gamma, lam):
    sequence = pack()
    rewards, values = random(len(sequence)), random(len(sequence), seed=1).requires_grad_()
    advantages, returns = generalized_advantages(rewards, values, sequence, gamma, lam)
    expected = torch.zeros(len(sequence), dtype=torch.float64)
    for tokens in runs(sequence):
        following_value = following_advantage = 0.0
        for i in reversed(tokens):
            error = rewards[i].item() + gamma * following_value - values[i].item()
            following_advantage = error + gamma * lam * following_advantage
            following_value = values[i].item()
            expected[i] = following_advantage
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values.detach())
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_returns_without_bootstrapping_are_the_rewards_to_come():
    sequence = pack()
    rewards = random(len(sequence))
    _, returns = generalized_advantages(rewards, random(len(sequence), seed=1), sequence, 1.0, 1.0)
    torch.testing.assert_close(returns, discounted_sums(rewards, sequence, 1.0))


def test_token_rewards_pay_for_the_kl_and_end_with_the_score():
    sequence = pack()
    log_probs, reference = random(len(sequence)).requires_grad_(), random(len(sequence), seed=1)
    scores = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)
    found = token_rewards(scores, log_probs, reference, sequence, 0.1)
    expected = -0.1 * (log_probs.detach() - reference)
    for place, score in ((2, 30.0), (3, 10.0), (8, 40.0), (10, 20.0)):
        expected[place] += score
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    totals = sequence_sums(found, sequence, 4)
    torch.testing.assert_close(
        totals, scores - 0.1 * sequence_sums((log_probs - reference).detach(), sequence, 4)
    )


def test_group_advantages_are_deviations_from_the_groups_mean():
    rewards = random(3, 4).float()
    plain = group_advantages(rewards, "none")
    for row, found in zip(rewards, plain, strict=True):
        torch.testing.assert_close(found, row - sum(row) / 4)
    torch.testing.assert_close(group_advantages(rewards), plain / (rewards.std(1, keepdim=True) + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, "batch"), plain / (rewards.std() + 1e-4))


def test_leaving_one_out_scales_the_deviation_from_the_mean():
    rewards = random(3, 5)
    found = leave_one_out_advantages(rewards)
    others = (rewards[1, 0] + rewards[1, 1] + rewards[1, 3] + rewards[1, 4]) / 4
    torch.testing.assert_close(found[1, 2], rewards[1, 2] - others)
    torch.testing.assert_close(found, 5 / 4 * group_advantages(rewards, "none"))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_teach_nothing(scale):
    rewards = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]])
    assert zero_spread(rewards).tolist() == [True, False]
    advantages = group_advantages(rewards, scale)
    assert not advantages[0].any()
    assert advantages[1].all()


@pytest.mark.parametrize("compute", [group_advantages, leave_one_out_advantages])
def test_a_group_of_one_is_refused(compute):
    with pytest.raises(ValueError, match="at least 2"):
        compute(torch.ones(4, 1))


def test_whitened_values_have_mean_0_and_variance_1():
    values = 3 + 2 * random(50)
    found = whiten(values)
    torch.testing.assert_close(found.mean(), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.var(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(whiten(values, shift_mean=False), found + values.mean())


def test_whitening_over_a_mask_is_whitening_what_is_in_it():
    values, mask = random(4, 6), random(4, 6, seed=1) > 0
    found = whiten(values, mask)
    torch.testing.assert_close(found[mask], whiten(values[mask]))
    assert not found[~mask].any()


def test_whitening_too_few_values_is_finite():
    one = torch.tensor([True, False])
    assert whiten(torch.tensor([3.0, 5.0]), one).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([3.0, 5.0]), ~one & one).tolist() == [0.0, 0.0]


def test_overlong_completions_are_punished_the_more_the_nearer_the_limit():
    lengths = torch.tensor([1, 80, 85, 90, 100, 120])
    assert soft_overlong_punishment(lengths, 100, 20).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_the_kl_coefficient_moves_towards_the_target():
    control = AdaptiveKl(0.2, target=6.0, horizon=1000)
    assert control.after(6.0, 100).coefficient == 0.2
    assert control.after(60.0, 100).coefficient == pytest.approx(0.2 * 1.02)
    assert control.after(0.0, 100).coefficient == pytest.approx(0.2 * 0.98)
    assert control.after(6.6, 100).coefficient == pytest.approx(0.2 * 1.01)
