"""The losses of post-training against TRL: its own batches through a tiny Llama, values and gradients.

All of them in one file, because importing TRL takes half a minute.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from cupola.objectives.advantages import (
    group_advantages,
    leave_one_out_advantages,
    soft_overlong_punishment,
    zero_spread,
)
from cupola.objectives.policy_losses import PolicySettings, PolicyTokens, policy_loss, policy_normaliser
from cupola.objectives.preference_losses import Completions, PairSettings, kto_kl, kto_losses, pair_losses
from cupola.objectives.reward_losses import bradley_terry, pair_metrics
from tests.objectives.trl_oracle import completions, halves, load, pairs, token_log_probs

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed"),
]

TOLERANCE = 1e-5
GROUP = 4


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        yield load(tmp_path_factory.mktemp("trl"))


def gradient(loss: torch.Tensor, model) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(found: torch.Tensor, expected: torch.Tensor, model) -> None:
    """Value and gradient, relative to their size."""
    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE, abs=TOLERANCE)
    ours, theirs = gradient(found, model), gradient(expected, model)
    assert theirs.norm() > 1e-3
    assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()


@pytest.fixture(scope="module")
def dpo(trl):
    trainer = trl.library.DPOTrainer(
        model=trl.policy,
        ref_model=trl.reference,
        args=trl.library.DPOConfig(**trl.arguments, beta=0.3),
        train_dataset=trl.dataset(pairs()),
        processing_class=trl.tokenizer,
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize(
    ("kind", "smoothing"),
    [("sigmoid", 0.0), ("robust", 0.1), ("ipo", 0.0), ("hinge", 0.0), ("sigmoid_norm", 0.0)],
)
def test_dpo_family(trl, dpo, kind, smoothing):
    trainer, batch = dpo
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [kind], [1.0], smoothing
    trl.policy.eval()
    expected = trainer.compute_loss(trl.policy, dict(batch))
    chosen, rejected = halves(
        completions(trl, batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    )
    found = pair_losses(PairSettings(kind, 0.3, smoothing), chosen, rejected)
    assert_same(found.loss.mean(), expected, trl.policy)
    if kind in ("sigmoid", "hinge"):
        metrics = pair_metrics(found.chosen_reward, found.rejected_reward)
        theirs = {
            "chosen_reward": "chosen",
            "rejected_reward": "rejected",
            "reward_margin": "margins",
            "accuracy": "accuracies",
        }
        for ours, name in theirs.items():
            logged = trainer._metrics["eval"][f"rewards/{name}"][-1]
            assert metrics[ours].item() / len(found.loss) == pytest.approx(logged, abs=1e-4)


def test_dpo_with_an_sft_term(trl, dpo):
    """Of pairs whose chosen answers are as long, so that both kinds of mean are one."""
    trainer, batch = dpo
    length = batch["completion_mask"].sum(1).chunk(2)[0]
    same = length == length.mode().values
    assert 1 < same.sum() < len(same)
    batch = {name: value[torch.cat([same, same])] for name, value in batch.items() if torch.is_tensor(value)}
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = ["sigmoid", "sft"], [1.0, 0.4], 0.0
    expected = trainer.compute_loss(trl.policy.eval(), dict(batch))
    chosen, rejected = halves(
        completions(trl, batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    )
    found = pair_losses(PairSettings(beta=0.3, sft_weight=0.4), chosen, rejected).loss.mean()
    assert_same(found, expected, trl.policy)


def reference_free(trl, trainer, batch) -> tuple[Completions, Completions]:
    """Of a batch of the older trainers, which pad chosen and rejected apart and put them together later."""
    both = trainer.concatenated_inputs(batch, padding_value=0)
    mask = (both["concatenated_labels"] != -100).long()
    ids, attention = both["concatenated_input_ids"], both["concatenated_attention_mask"]
    return halves(completions(trl, ids, attention, mask, reference=False))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo(trl, smoothing):
    arguments = trl.cpo.CPOConfig(
        **trl.arguments,
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=2.0,
        simpo_gamma=0.5,
        label_smoothing=smoothing,
    )
    trainer = trl.cpo.CPOTrainer(
        model=trl.policy,
        args=arguments,
        train_dataset=trl.dataset(pairs()),
        processing_class=trl.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected, _ = trainer.get_batch_loss_metrics(trl.policy.eval(), batch)
    settings = PairSettings("simpo", 2.0, smoothing, simpo_gamma=0.5)
    found = pair_losses(settings, *reference_free(trl, trainer, batch)).loss.mean()
    assert_same(found, expected, trl.policy)


def test_conservative_dpo(trl):
    """TRL has label smoothing in CPO, which is DPO against a reference that is the same for all."""
    both = [-20 + torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    trainer = SimpleNamespace(
        alpha=0.0,
        loss_type="sigmoid",
        beta=0.3,
        label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )
    expected, *_ = trl.cpo.CPOTrainer.cpo_loss(trainer, *both)
    length, nothing = torch.ones(6, dtype=torch.int64), torch.zeros(6)
    chosen, rejected = (Completions(log_probs, length, nothing) for log_probs in both)
    torch.testing.assert_close(
        pair_losses(PairSettings("sigmoid", 0.3, 0.1), chosen, rejected).loss, expected
    )


def test_orpo(trl):
    """Its odds ratio; the likelihood beside it is of the completion here, of the prompt as well there."""
    trainer = trl.orpo.ORPOTrainer(
        model=trl.policy,
        args=trl.orpo.ORPOConfig(**trl.arguments, beta=0.2),
        train_dataset=trl.dataset(pairs()),
        processing_class=trl.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    chosen_mean, rejected_mean, *_ = trainer.concatenated_forward(trl.policy.eval(), batch)
    gain, *_ = trainer.odds_ratio_loss(chosen_mean, rejected_mean)
    chosen, rejected = reference_free(trl, trainer, batch)
    found = pair_losses(PairSettings("orpo", 0.2), chosen, rejected).loss.mean()
    assert_same(found, -gain.mean() - chosen_mean.mean(), trl.policy)


def test_kto(trl):
    records = [
        {"prompt": pair["prompt"], "completion": pair["chosen" if i % 3 else "rejected"], "label": i % 3 > 0}
        for i, pair in enumerate(pairs())
    ]
    trainer = trl.library.KTOTrainer(
        model=trl.policy,
        ref_model=trl.reference,
        args=trl.library.KTOConfig(**trl.arguments, beta=0.2, desirable_weight=0.8, undesirable_weight=1.3),
        train_dataset=trl.dataset(records),
        processing_class=trl.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trl.policy.eval(), dict(batch))
    fields = ("input_ids", "attention_mask", "completion_mask")
    given = completions(trl, *(batch[name] for name in fields))
    mismatched = completions(trl, *(batch[f"KL_{name}"] for name in fields))
    kl = kto_kl(mismatched)
    assert kl.item() == pytest.approx(trainer._metrics["eval"]["kl"][-1], abs=1e-4)
    found = kto_losses(given, batch["label"].bool(), kl, 0.2, 0.8, 1.3).loss.mean()
    assert_same(found, expected, trl.policy)


@pytest.mark.parametrize("centre", [None, 0.05])
@pytest.mark.parametrize("margin", [False, True])
def test_reward_model(trl, margin, centre):
    records = [{**pair, **({"margin": i / 10} if margin else {})} for i, pair in enumerate(pairs())]
    trainer = trl.library.RewardTrainer(
        model=trl.reward,
        args=trl.library.RewardConfig(**trl.arguments, center_rewards_coefficient=centre),
        train_dataset=trl.dataset(records),
        processing_class=trl.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert ("margin" in batch) == margin
    expected = trainer.compute_loss(trl.reward.eval(), dict(batch))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chosen, rejected = trl.reward(**inputs).logits.squeeze(-1).chunk(2)
    found = bradley_terry(chosen, rejected, batch.get("margin", 0.0), centre or 0.0)
    assert_same(found.mean(), expected, trl.reward)
    metrics = pair_metrics(chosen, rejected)
    logged = trainer._metrics["eval"]
    assert metrics["accuracy"].item() / len(found) == pytest.approx(logged["accuracy"][-1])
    assert metrics["reward_margin"].item() / len(found) == pytest.approx(logged["margin"][-1], abs=1e-5)


class Scores:
    """A reward that remembers what it gave; of the first prompt, always the same."""

    __name__ = "scores"

    def __init__(self) -> None:
        self.given = torch.empty(0)

    def __call__(self, completions: list[str], **unused: object) -> list[float]:
        scores = [0.1 if i < GROUP else len(set(text)) / 5 for i, text in enumerate(completions)]
        self.given = torch.tensor(scores)
        return scores


def policy_trainer(trl, kind: str, scores: Scores, **settings: object):
    """A trainer of TRL's that samples; beta comes later, as it would look for a reference by name."""
    arguments = getattr(trl.library, f"{kind}Config")(
        **trl.arguments, num_generations=GROUP, max_completion_length=8, beta=0.0, **settings
    )
    return getattr(trl.library, f"{kind}Trainer")(
        model=trl.language_model(0),
        reward_funcs=scores,
        args=arguments,
        train_dataset=trl.dataset([{"prompt": pair["prompt"]} for pair in pairs()]),
        processing_class=trl.tokenizer,
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_groups(trl, scale):
    scores = Scores()
    trainer = policy_trainer(trl, "GRPO", scores, scale_rewards=scale)
    trainer.model.train()
    made = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    rewards = scores.given.view(-1, GROUP)
    torch.testing.assert_close(
        group_advantages(rewards, scale).flatten(), made["advantages"], atol=1e-4, rtol=1e-5
    )
    share = trainer._metrics["train"]["frac_reward_zero_std"][-1]
    if scale != "batch":  # where TRL reports whether the batch's rewards are all equal
        assert zero_spread(rewards).float().mean().item() == share


def test_advantages_of_rloo(trl):
    scores = Scores()
    trainer = policy_trainer(trl, "RLOO", scores)
    made = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    found = leave_one_out_advantages(scores.given.view(-1, GROUP)).flatten()
    torch.testing.assert_close(found, made["advantages"])


@pytest.fixture(scope="module")
def grpo(trl):
    trainer = policy_trainer(trl, "GRPO", Scores())
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    return trainer


ROWS, PROMPT, LONGEST = 8, 5, 8


def rollout(model, off_policy: float = 0.3) -> dict[str, torch.Tensor]:
    """Completions of many lengths, sampled by a policy that differs by enough to be clipped."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randint(3, 90, shape, generator=generator)
    lengths = torch.randint(2, LONGEST + 1, (ROWS, 1), generator=generator)
    mask = (torch.arange(LONGEST) < lengths).long()
    prompt, completion = draw(ROWS, PROMPT), draw(ROWS, LONGEST)
    made = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": torch.randn(ROWS, generator=generator),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        now = completion_log_probs(model, made)
    made["old_per_token_logps"] = now + off_policy * torch.randn(now.shape, generator=generator)
    made["ref_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=generator)
    return made


def completion_log_probs(model, made) -> torch.Tensor:
    """(B, T) of the completions' tokens."""
    ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
    attention = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
    return token_log_probs(model, ids, attention)[:, PROMPT - 1 :]


def packed(model, made) -> PolicyTokens:
    """The same side by side, without padding."""
    mask = made["completion_mask"].bool()
    sequence = mask.nonzero()[:, 0]
    flat = [made[name][mask] for name in ("old_per_token_logps", "ref_per_token_logps")]
    return PolicyTokens(
        completion_log_probs(model, made)[mask], made["advantages"][sequence], sequence, ROWS, *flat
    )


POLICIES = {
    "grpo": (PolicySettings("grpo", beta=0.04), {}),
    "bnpo": (PolicySettings("dapo", beta=0.04), {"loss_type": "bnpo"}),
    "dapo": (PolicySettings("dapo", epsilon_high=0.28), {}),
    "dr_grpo": (PolicySettings("dr_grpo", max_completion_length=LONGEST), {}),
    "dual clip": (PolicySettings("dapo", epsilon_high=0.28, delta=1.4), {}),
    "k3": (PolicySettings("dapo", beta=0.3, kl_estimator="k3"), {}),
    "gspo": (PolicySettings("grpo", epsilon=0.05, importance_sampling_level="sequence", beta=0.04), {}),
    "cispo": (PolicySettings("cispo", epsilon_high=1.2), {}),
}


@pytest.mark.parametrize(("settings", "theirs"), POLICIES.values(), ids=POLICIES)
def test_policy_losses(grpo, settings, theirs):
    grpo.loss_type = theirs.get("loss_type", settings.loss_type)
    grpo.epsilon_low, grpo.epsilon_high, grpo.args.delta = (
        settings.epsilon,
        settings.clip_high,
        settings.delta,
    )
    grpo.beta, grpo.args.use_bias_correction_kl = settings.beta, settings.kl_estimator == "k3_ratio"
    grpo.importance_sampling_level = settings.importance_sampling_level
    model = grpo.model.train()
    made = rollout(model)
    expected = grpo._compute_loss(model, made)
    tokens = packed(model, made)
    found = policy_loss(settings, tokens)
    count = len(tokens.sequence)
    assert_same(found.sum / policy_normaliser(settings, ROWS, count), expected, model)
    logged = grpo._metrics["train"]
    if settings.importance_sampling_level == "token" and settings.loss_type != "cispo":
        for name in ("low", "high"):
            share = logged[f"clip_ratio/{name}_mean"][-1]
            assert share > 0
            assert found.metrics[f"clip_{name}"].item() / count == pytest.approx(share)
    if settings.kl_estimator == "k3" and settings.beta:
        assert found.metrics["kl"].item() / count == pytest.approx(logged["kl"][-1], rel=1e-4)


def test_rloo(trl):
    trainer = policy_trainer(trl, "RLOO", Scores())
    model = trainer.model.train()
    made = rollout(model, off_policy=0.1)
    mask = made["completion_mask"]
    made["old_logps"] = (made["old_per_token_logps"] * mask).sum(1)
    expected = trainer._compute_loss(model, made)
    settings = PolicySettings("grpo", importance_sampling_level="sequence_sum", epsilon=trainer.epsilon_low)
    found = policy_loss(settings, packed(model, made)).sum / policy_normaliser(
        settings, ROWS, int(mask.sum())
    )
    assert_same(found, expected, model)


def test_overlong_punishment(trl):
    from trl.rewards import get_soft_overlong_punishment

    lengths = list(range(1, 41))
    expected = get_soft_overlong_punishment(32, 12)(completion_ids=[[1] * length for length in lengths])
    found = soft_overlong_punishment(torch.tensor(lengths), 32, 12)
    torch.testing.assert_close(found, torch.tensor(expected))
