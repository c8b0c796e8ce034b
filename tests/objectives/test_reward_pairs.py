"""The reward model's objective: against transformers' classifier of one label, and however rows are cut."""

from typing import cast

import numpy as np
import pytest
import torch
from torch.nn import functional

from cupola.data.batch import Microbatch
from cupola.data.packing import fill, pack
from cupola.export.formats import of_model
from cupola.export.pairs import to_theirs
from cupola.models import build
from cupola.models.stack import LanguageModel
from cupola.models.table import SCORE
from cupola.objectives.reward import RewardPairs
from cupola.parallel.engine import LocalEngine
from cupola.recipe.alignment import RewardModel
from tests.export.oracles import VOCABULARY, exported
from tests.models.small_models import EXPERTS, LLAMA, MAMBA2, RWKV7

ROW, DELIMITER, PAIRS = 48, 0, 7
SETTINGS = RewardModel(margin=0.3, center_rewards_coefficient=0.05)


def answers() -> list[np.ndarray]:
    """Chosen and rejected answers in turns, each with a prompt of three tokens."""
    generator = np.random.default_rng(4)
    return [generator.integers(1, VOCABULARY, length) for length in generator.integers(5, 20, 2 * PAIRS)]


def microbatches(rows_at_once: int) -> list[Microbatch]:
    said = [(ids, np.arange(len(ids)) >= 3) for ids in answers()]
    items = [said[2 * i : 2 * i + 2] for i in range(PAIRS)]
    lengths = np.array([sum(len(ids) + 1 for ids, _ in item) for item in items])
    rows = pack(lengths, ROW)
    found = []
    for first in range(0, len(rows), rows_at_once):
        filled = fill(rows[first : first + rows_at_once], items, ROW, DELIMITER)
        opened = np.full((len(filled.tokens), 1), DELIMITER)
        tokens = np.concatenate([opened, filled.tokens], axis=1)
        learnt = np.concatenate([opened > 0, filled.learnt], axis=1)
        found.append(Microbatch.of_rows(tokens, DELIMITER, learnt=learnt))
    return found


def scored(model, seed: int = 5) -> LanguageModel:
    """With a head that is not 0."""
    module = build(model, VOCABULARY, seed, scores=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return module


def test_transformers_computes_the_same(tmp_path):
    from transformers import AutoModelForSequenceClassification

    module = scored(LLAMA)
    plain = build(LLAMA, VOCABULARY, 0)
    plain.load_state_dict({n: t for n, t in module.state_dict().items() if n != SCORE})
    oracle = AutoModelForSequenceClassification.from_pretrained(
        exported(tmp_path / "out", LLAMA, plain), num_labels=1, pad_token_id=VOCABULARY - 1
    )
    with torch.no_grad():
        oracle.score.weight.copy_(module.get_parameter(SCORE))
    rewards = torch.cat([oracle(torch.tensor([[DELIMITER, *ids.tolist()]])).logits[0] for ids in answers()])
    chosen, rejected = rewards[::2], rewards[1::2]
    losses = -functional.logsigmoid(chosen - rejected - 0.3) + 0.05 * (chosen + rejected) ** 2
    losses.mean().backward()

    found = LocalEngine(module, "fp32", "cpu").forward_backward(microbatches(1), RewardPairs(SETTINGS), PAIRS)
    assert found.loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found.metrics["accuracy"].item() == pytest.approx((chosen > rejected).float().mean().item())
    assert found.metrics["reward_max"].item() == pytest.approx(rewards.max().item(), abs=1e-5)
    assert found.metrics["reward_min"].item() == pytest.approx(rewards.min().item(), abs=1e-5)
    theirs = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    own = {n: p.grad for n, p in module.named_parameters() if n != SCORE}
    assert own.pop("head.weight") is None
    pairs = [pair for pair in of_model(LLAMA).pairs(LLAMA) if "head.weight" not in pair.ours]
    for name, gradient in {**to_theirs(own, pairs), SCORE: module.get_parameter(SCORE).grad}.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "model", [LLAMA, MAMBA2, RWKV7, EXPERTS], ids=["llama", "mamba2", "rwkv7", "experts"]
)
def test_it_does_not_matter_how_rows_are_cut(model):
    results, gradients = [], []
    for rows in (1, 3):
        module = scored(model)
        engine = LocalEngine(module, "fp32", "cpu")
        results.append(engine.forward_backward(microbatches(rows), RewardPairs(SETTINGS), PAIRS))
        gradients.append(module.get_parameter(SCORE).grad)
    one, several = results
    assert one.metrics["reward_min"].item() < one.metrics["reward_mean"].item()
    for name in ("accuracy", "reward_margin", "reward_mean", "reward_min", "reward_max", "chosen_reward"):
        torch.testing.assert_close(one.metrics[name], several.metrics[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.loss, several.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*cast(list, gradients), rtol=1e-4, atol=1e-5)


def test_a_fresh_head_is_at_the_expected_loss():
    module = build(LLAMA, VOCABULARY, 1, scores=True)
    for settings in (RewardModel(), SETTINGS):
        objective = RewardPairs(settings)
        found = LocalEngine(module, "fp32", "cpu").forward_backward(microbatches(2), objective, PAIRS)
        assert found.loss.item() == pytest.approx(objective.expected_first_loss(VOCABULARY))
