import math
from dataclasses import replace

import pytest
import torch

from cupola.objectives.policy_losses import (
    PolicySettings,
    PolicyTokens,
    kl_estimates,
    policy_loss,
    policy_normaliser,
    value_losses,
)

LENGTHS = [3, 1, 5, 2]
NUMBERS = [2, 0, 3, 1]  # completions may come in any order
COUNT = len(LENGTHS)
TOKENS = sum(LENGTHS)
LIMIT = 8


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def packed(off_policy: float = 0.4) -> PolicyTokens:
    """Completions of both signs, whose ratios leave the clipping range on both sides."""
    sequence = torch.tensor([n for n, length in zip(NUMBERS, LENGTHS, strict=True) for _ in range(length)])
    old = -2 + random(TOKENS, seed=1)
    return PolicyTokens(
        (old + off_policy * random(TOKENS, seed=2)).requires_grad_(),
        random(COUNT, seed=3)[sequence],
        sequence,
        COUNT,
        old,
        old + 0.3 * random(TOKENS, seed=4),
    )


def mean_loss(settings: PolicySettings, tokens: PolicyTokens) -> torch.Tensor:
    return policy_loss(settings, tokens).sum / policy_normaliser(settings, tokens.count, len(tokens.sequence))


def gradient(loss: torch.Tensor, tokens: PolicyTokens) -> torch.Tensor:
    return torch.autograd.grad(loss, tokens.log_probs)[0]


def plain(settings: PolicySettings, tokens: PolicyTokens) -> torch.Tensor:
    """The same, one completion and one token at a time, as the papers write it."""
    assert tokens.old_log_probs is not None
    assert tokens.reference_log_probs is not None
    total = torch.zeros((), dtype=torch.float64)
    for number in range(tokens.count):
        places = (tokens.sequence == number).nonzero().flatten().tolist()
        of_completion = torch.zeros((), dtype=torch.float64)
        differences = [tokens.log_probs[i] - tokens.old_log_probs[i] for i in places]
        for place, i in enumerate(places):
            ratio = {
                "token": differences[place].exp(),
                "sequence": (sum(differences) / len(places)).exp(),
                "sequence_sum": sum(differences).exp(),
            }[settings.importance_sampling_level]
            advantage = tokens.advantages[i]
            if settings.loss_type == "cispo":
                loss = -min(ratio.item(), settings.clip_high) * advantage * tokens.log_probs[i]
            else:
                clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.clip_high)
                gain = torch.minimum(ratio * advantage, clipped * advantage)
                if settings.delta is not None and advantage < 0:
                    gain = torch.maximum(gain, settings.delta * advantage)
                loss = -gain
            difference = tokens.reference_log_probs[i] - tokens.log_probs[i]
            loss = loss + settings.beta * ratio * (difference.exp() - difference - 1)
            of_completion = of_completion + loss
        total = total + (of_completion / len(places) if settings.loss_type == "grpo" else of_completion)
    return total / {"grpo": COUNT, "dr_grpo": COUNT * LIMIT}.get(settings.loss_type, TOKENS)


SETTINGS = {
    "grpo": PolicySettings("grpo", beta=0.04),
    "dapo, clip higher": PolicySettings("dapo", epsilon_high=0.28),
    "dr_grpo": PolicySettings("dr_grpo", max_completion_length=LIMIT),
    "dual clip": PolicySettings("dapo", delta=1.5, epsilon_high=0.3),
    "cispo": PolicySettings("cispo", epsilon_high=1.3, beta=0.1),
    "gspo": PolicySettings("grpo", importance_sampling_level="sequence", epsilon=0.05, beta=0.04),
    "rloo": PolicySettings("grpo", importance_sampling_level="sequence_sum"),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_losses_and_gradients_are_those_of_a_loop(settings):
    tokens = packed()
    found, expected = mean_loss(settings, tokens), plain(settings, tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, tokens), gradient(expected, tokens))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_microbatches_add_up_to_the_batch(settings):
    """Their sums over the batch's normaliser are its mean, however its completions are cut."""
    tokens = packed()
    whole = policy_loss(settings, tokens)
    first = tokens.sequence >= 2  # completions 2 and 3
    total, metrics = torch.zeros((), dtype=torch.float64), dict.fromkeys(whole.metrics, 0.0)
    for part in (first, ~first):
        kept = PolicyTokens(
            tokens.log_probs[part],
            tokens.advantages[part],
            tokens.sequence[part] % 2,
            2,
            *(
                given[part]
                for given in (tokens.old_log_probs, tokens.reference_log_probs)
                if given is not None
            ),
        )
        found = policy_loss(settings, kept)
        total = total + found.sum
        metrics = {name: metrics[name] + value.item() for name, value in found.metrics.items()}
    torch.testing.assert_close(total, whole.sum)
    torch.testing.assert_close(gradient(total, tokens), gradient(whole.sum, tokens))
    assert metrics == pytest.approx({name: value.item() for name, value in whole.metrics.items()})


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_one_update_for_each_generation_is_reinforce(loss_type):
    tokens = replace(packed(), old_log_probs=None)
    settings = PolicySettings(loss_type, max_completion_length=LIMIT)
    found = gradient(mean_loss(settings, tokens), tokens)
    lengths = torch.tensor([LENGTHS[NUMBERS.index(n)] for n in range(COUNT)])[tokens.sequence]
    weight = {"grpo": 1 / (COUNT * lengths), "dapo": 1 / TOKENS, "dr_grpo": 1 / (COUNT * LIMIT)}[loss_type]
    torch.testing.assert_close(found, -tokens.advantages * weight, check_dtype=False)


def test_the_length_of_a_completion_leaves_its_tokens_weight_alone_in_dr_grpo_only():
    """Liu et al. 2025: with means over completions a token of a long wrong answer is punished less."""
    weights = {}
    for loss_type in ("grpo", "dr_grpo"):
        tokens = replace(packed(), old_log_probs=None, advantages=torch.ones(TOKENS))
        weights[loss_type] = gradient(mean_loss(PolicySettings(loss_type), tokens), tokens)
    assert weights["dr_grpo"].unique().numel() == 1
    assert weights["grpo"].unique().numel() == len(set(LENGTHS))


def test_masked_completions_are_left_out_of_the_tokens():
    """Of the batch the cut completion's tokens are missing; grpo still counts it among the completions."""
    tokens = packed()
    kept = tokens.sequence != 3
    assert tokens.old_log_probs is not None
    masked = PolicyTokens(
        tokens.log_probs[kept],
        tokens.advantages[kept],
        tokens.sequence[kept],
        COUNT,
        tokens.old_log_probs[kept],
    )
    worthless = replace(tokens, advantages=tokens.advantages.masked_fill(~kept, 0.0))
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        settings = PolicySettings(loss_type)
        torch.testing.assert_close(policy_loss(settings, masked).sum, policy_loss(settings, worthless).sum)
    assert policy_normaliser(PolicySettings("grpo"), COUNT, int(kept.sum())) == COUNT
    assert policy_normaliser(PolicySettings("dapo"), COUNT, int(kept.sum())) == TOKENS - 5
    assert policy_normaliser(PolicySettings("dapo"), COUNT, 0) == 1


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
def test_policies_far_apart_give_finite_losses(level):
    tokens = packed()
    far = replace(
        tokens, old_log_probs=torch.full((TOKENS,), -500.0), reference_log_probs=torch.zeros(TOKENS)
    )
    far = replace(far, log_probs=(tokens.log_probs.detach() - 200).float().requires_grad_())
    loss = mean_loss(PolicySettings(beta=0.1, importance_sampling_level=level), far)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, far)).all()


def test_clipped_tokens_are_counted_and_have_no_gradient():
    old = torch.zeros(6, dtype=torch.float64)
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.24], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    tokens = PolicyTokens(
        ratios.log().requires_grad_(), advantages, torch.zeros(6, dtype=torch.int64), 1, old
    )
    found = policy_loss(PolicySettings("dapo", epsilon=0.2, epsilon_high=0.28), tokens)
    assert gradient(found.sum, tokens).ne(0).tolist() == [False, True, True, False, True, True]
    metrics = {name: value.item() for name, value in found.metrics.items()}
    assert metrics == pytest.approx(
        {
            "clip_high": 1.0,
            "clip_low": 1.0,
            "ratio": 6.34,
            "approximate_kl": sum(r - 1 - math.log(r) for r in ratios.tolist()),
        }
    )


def test_the_policy_part_of_the_loss_is_without_the_kl():
    tokens = packed()
    found = policy_loss(PolicySettings("grpo", beta=0.5), tokens)
    without = policy_loss(PolicySettings("grpo"), tokens)
    torch.testing.assert_close(found.policy, without.sum.detach())
    assert found.sum > without.sum
    assert "kl" in found.metrics
    assert "kl" not in without.metrics
    assert not found.policy.requires_grad
    assert not any(value.requires_grad for value in found.metrics.values())


class Policy:
    """All of a policy over six tokens, so that expectations are sums."""

    def __init__(self) -> None:
        self.logits = random(6, seed=1).requires_grad_()
        self.log_probs = self.logits.log_softmax(0)
        self.reference = random(6, seed=2).log_softmax(0)
        self.kl = (self.log_probs.exp() * (self.log_probs - self.reference)).sum()

    def expected(self, estimator, ratio=None) -> torch.Tensor:
        """Mean of the estimate over what the policy samples; sampling has no gradient."""
        return (
            self.log_probs.exp().detach() * kl_estimates(self.log_probs, self.reference, estimator, ratio)
        ).sum()

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    policy = Policy()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close(policy.expected(estimator), policy.kl)
    assert (kl_estimates(policy.log_probs, policy.reference, "k3") >= 0).all()
    ratio = (policy.log_probs - policy.log_probs.detach()).exp()
    torch.testing.assert_close(policy.expected("k3_ratio", ratio), policy.kl)


def test_in_a_loss_k2_and_k3_with_the_ratio_have_the_gradient_of_the_kl():
    policy = Policy()
    expected = policy.gradient(policy.kl)
    ratio = (policy.log_probs - policy.log_probs.detach()).exp()
    torch.testing.assert_close(policy.gradient(policy.expected("k2")), expected)
    torch.testing.assert_close(policy.gradient(policy.expected("k3_ratio", ratio)), expected)
    assert not torch.allclose(policy.gradient(policy.expected("k3")), expected, rtol=0.1)
    torch.testing.assert_close(policy.gradient(policy.expected("k1")), torch.zeros_like(expected))


def test_the_critic_gains_nothing_by_moving_far():
    values = torch.tensor([1.0, 2.0, 0.0, 1.0], requires_grad=True)
    old, returns = torch.full((4,), 1.0), torch.full((4,), 3.0)
    found = value_losses(values, old, returns, 0.5)
    expected = [
        0.5 * max((v - 3) ** 2, (min(max(v, 0.5), 1.5) - 3) ** 2) for v in values.tolist()
    ]  # within; beyond the range: clipped, no gradient; away from the return: the error itself; within
    torch.testing.assert_close(found, torch.tensor(expected))
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert slope.tolist() == [-2.0, 0.0, -3.0, -2.0]


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0, "delta": 6.0}, {"delta": 1.2}],
)
def test_constants_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError, match=r"cispo|delta"):
        PolicySettings(**settings)


def test_a_kl_without_its_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        policy_loss(PolicySettings(beta=0.1), replace(packed(), reference_log_probs=None))
    with pytest.raises(ValueError, match="ratio"):
        kl_estimates(torch.zeros(2), torch.zeros(2), "k3_ratio")
