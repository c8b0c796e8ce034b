import math
from dataclasses import replace

import pytest
import torch

from cupola.objectives.preference_losses import (
    REFERENCE_FREE,
    Completions,
    PairSettings,
    kto_kl,
    kto_losses,
    pair_losses,
)

LN2 = math.log(2)
PAIRS = 6


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def completions(seed: int, near: float = 3.0) -> Completions:
    """Some completions whose policy is within about `near` nats of the reference."""
    reference = -20 - 3 * random(PAIRS, seed=seed).abs()
    lengths = torch.randint(3, 12, (PAIRS,), generator=torch.Generator().manual_seed(seed))
    log_probs = (reference + near * random(PAIRS, seed=seed + 100)).requires_grad_()
    return Completions(log_probs, lengths, reference)


def without_reference(given: Completions) -> Completions:
    return replace(given, reference=None)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def textbook(
    kind: str, beta: float, gamma: float, chosen: Completions, rejected: Completions, i: int
) -> float:
    """Each loss as its paper writes it, one pair at a time."""
    c, r = (side.log_probs[i].item() for side in (chosen, rejected))
    m, n = (int(side.lengths[i]) for side in (chosen, rejected))
    if kind in REFERENCE_FREE:
        p, q = math.exp(c / m), math.exp(r / n)
        if kind == "simpo":
            return -math.log(sigmoid(beta * c / m - beta * r / n - gamma))
        return -c / m - beta * math.log(sigmoid(math.log((p / (1 - p)) / (q / (1 - q)))))
    assert chosen.reference is not None
    assert rejected.reference is not None
    c, r = c - chosen.reference[i].item(), r - rejected.reference[i].item()
    match kind:
        case "sigmoid" | "robust":
            return -math.log(sigmoid(beta * c - beta * r))
        case "sigmoid_norm":
            return -math.log(sigmoid(beta * c / m - beta * r / n))
        case "hinge":
            return max(0.0, 1 - beta * (c - r))
        case "ipo":
            return (c / m - r / n - 1 / (2 * beta)) ** 2
    raise AssertionError(kind)


KINDS = ["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "simpo", "orpo"]


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_is_its_papers_formula(kind, beta):
    chosen, rejected = completions(1), completions(2)
    found = pair_losses(PairSettings(kind, beta, simpo_gamma=0.7), chosen, rejected)
    expected = [textbook(kind, beta, 0.7, chosen, rejected, i) for i in range(PAIRS)]
    torch.testing.assert_close(found.loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_depends_on_no_other(kind):
    chosen, rejected = completions(1), completions(2)
    together = pair_losses(PairSettings(kind), chosen, rejected)

    def one(given: Completions, i: int) -> Completions:
        reference = None if given.reference is None else given.reference[i : i + 1]
        return Completions(given.log_probs[i : i + 1], given.lengths[i : i + 1], reference)

    alone = [pair_losses(PairSettings(kind), one(chosen, i), one(rejected, i)) for i in range(PAIRS)]
    assert torch.equal(together.loss, torch.cat([part.loss for part in alone]))
    assert torch.equal(together.chosen_reward, torch.cat([part.chosen_reward for part in alone]))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sigmoid", LN2), ("robust", LN2), ("sigmoid_norm", LN2), ("hinge", 1.0), ("ipo", 25.0)],
)
def test_a_policy_that_equals_its_reference(kind, expected, label_smoothing):
    chosen, rejected = completions(1, near=0.0), completions(2, near=0.0)
    if kind in ("hinge", "ipo"):
        label_smoothing = 0.0
    found = pair_losses(PairSettings(kind, 0.1, label_smoothing), chosen, rejected)
    torch.testing.assert_close(found.loss, torch.full_like(found.loss, expected))
    assert not found.chosen_reward.any()
    assert not found.rejected_reward.any()


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm", "simpo"])
def test_label_smoothing_expects_some_pairs_the_wrong_way_round(kind):
    chosen, rejected = completions(1), completions(2)
    clean = PairSettings(kind, simpo_gamma=0.0)
    right, wrong = pair_losses(clean, chosen, rejected).loss, pair_losses(clean, rejected, chosen).loss
    smoothed = pair_losses(replace(clean, label_smoothing=0.2), chosen, rejected).loss
    torch.testing.assert_close(smoothed, 0.8 * right + 0.2 * wrong)


def test_robust_loss_of_flipped_labels_has_the_clean_loss_as_its_mean():
    chosen, rejected = completions(1), completions(2)
    robust = PairSettings("robust", label_smoothing=0.3)
    mean = 0.7 * pair_losses(robust, chosen, rejected).loss + 0.3 * pair_losses(robust, rejected, chosen).loss
    torch.testing.assert_close(mean, pair_losses(PairSettings(), chosen, rejected).loss)


def test_the_gradient_of_dpo_is_weighted_by_how_wrong_the_rewards_are():
    """Rafailov et al. 2023, section 4."""
    chosen, rejected = completions(1), completions(2)
    found = pair_losses(PairSettings(beta=0.3), chosen, rejected)
    up, down = torch.autograd.grad(found.loss.sum(), (chosen.log_probs, rejected.log_probs))
    weight = torch.sigmoid(found.rejected_reward - found.chosen_reward)
    torch.testing.assert_close(up, -0.3 * weight)
    torch.testing.assert_close(down, 0.3 * weight)


def test_ipo_is_content_at_its_margin_and_pulls_back_beyond_it():
    lengths = torch.tensor([4, 4, 4])
    chosen = Completions(torch.tensor([0.0, 20.0, 40.0]).requires_grad_(), lengths, torch.zeros(3))
    rejected = Completions(torch.zeros(3), lengths, torch.zeros(3))
    loss = pair_losses(PairSettings("ipo", beta=0.1), chosen, rejected).loss
    (gradient,) = torch.autograd.grad(loss.sum(), chosen.log_probs)
    assert gradient.sign().tolist() == [-1, 0, 1]


def test_rewards_are_what_the_loss_compares_and_have_no_gradient():
    chosen, rejected = completions(1), completions(2)
    assert chosen.reference is not None
    ratio = (chosen.log_probs - chosen.reference).detach()
    summed = pair_losses(PairSettings("sigmoid", 0.5), chosen, rejected)
    torch.testing.assert_close(summed.chosen_reward, 0.5 * ratio)
    mean = pair_losses(PairSettings("sigmoid_norm", 0.5), chosen, rejected)
    torch.testing.assert_close(mean.chosen_reward, 0.5 * ratio / chosen.lengths)
    free = pair_losses(PairSettings("simpo", 0.5), without_reference(chosen), without_reference(rejected))
    torch.testing.assert_close(free.chosen_reward, 0.5 * chosen.log_probs.detach() / chosen.lengths)
    assert not any(found.chosen_reward.requires_grad for found in (summed, mean, free))


def test_the_sft_term_is_the_chosens_mean_loss_of_a_token():
    chosen, rejected = completions(1), completions(2)
    plain = pair_losses(PairSettings(), chosen, rejected).loss
    added = pair_losses(PairSettings(sft_weight=0.25), chosen, rejected)
    torch.testing.assert_close(added.loss - plain, -0.25 * chosen.log_probs / chosen.lengths)
    torch.testing.assert_close(added.compared, plain.detach())


def test_orpo_is_finite_where_a_completion_is_certain_or_hopeless():
    lengths = torch.tensor([3, 3, 3])
    log_probs = torch.tensor([0.0, -1e-9, -3e4], requires_grad=True)
    found = pair_losses(
        PairSettings("orpo"), Completions(log_probs, lengths), Completions(log_probs.flip(0), lengths)
    )
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_probs)
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("margin", [-1e4, 1e4])
@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm"])
def test_losses_are_finite_far_from_the_reference(kind, margin):
    lengths = torch.tensor([2])
    chosen = Completions(torch.tensor([margin], requires_grad=True), lengths, torch.zeros(1))
    rejected = Completions(torch.zeros(1), lengths, torch.zeros(1))
    loss = pair_losses(PairSettings(kind), chosen, rejected).loss
    (gradient,) = torch.autograd.grad(loss.sum(), chosen.log_probs)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.0},
        {"label_smoothing": 0.5},
        {"label_smoothing": -0.1},
        {"loss_type": "ipo", "label_smoothing": 0.1},
    ],
)
def test_constants_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"beta|smoothing"):
        PairSettings(**settings)


def test_a_missing_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        pair_losses(PairSettings(), without_reference(completions(1)), completions(2))
    with pytest.raises(ValueError, match="reference"):
        kto_kl(without_reference(completions(1)))


def test_kto_is_its_papers_formula():
    given, mismatched = completions(1), completions(2)
    desirable = torch.tensor([True, False, True, True, False, False])
    assert given.reference is not None
    assert mismatched.reference is not None
    ratios = (given.log_probs - given.reference).tolist()
    kl = max(0.0, (mismatched.log_probs - mismatched.reference).mean().item())
    expected = [
        1.5 * (1 - sigmoid(0.2 * (x - kl))) if good else 0.7 * (1 - sigmoid(0.2 * (kl - x)))
        for x, good in zip(ratios, desirable.tolist(), strict=True)
    ]
    found = kto_losses(given, desirable, kto_kl(mismatched), 0.2, 1.5, 0.7)
    torch.testing.assert_close(found.loss, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.reward, 0.2 * torch.tensor(ratios, dtype=torch.float64))
    assert not found.reward.requires_grad


def test_the_kl_of_kto_is_never_negative_and_has_no_gradient():
    one = torch.ones(2, dtype=torch.int64)
    for ratios, expected in (([-3.0, 1.0], 0.0), ([3.0, -1.0], 1.0)):
        kl = kto_kl(Completions(torch.tensor(ratios, requires_grad=True), one, torch.zeros(2)))
        assert kl.item() == expected
        assert not kl.requires_grad


def test_kto_raises_the_desirable_and_lowers_the_others():
    given = completions(1)
    desirable = torch.tensor([True, False] * 3)
    loss = kto_losses(given, desirable, torch.tensor(0.3)).loss
    (gradient,) = torch.autograd.grad(loss.sum(), given.log_probs)
    assert torch.equal(gradient < 0, desirable)
