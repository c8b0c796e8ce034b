"""KTO over packed rows, against each answer by itself and TRL's formula."""

import numpy as np
import pytest
import torch

from cupola.data.batch import LEARNT, MISMATCHED, REJECTED, Batch, Microbatch
from cupola.data.packing import fill, pack
from cupola.models import build
from cupola.objectives.preference import REFERENCE
from cupola.objectives.rated import RatedAnswers
from cupola.recipe.alignment import Kto
from tests.models import small_models

VOCABULARY, ROW = 64, 48
SETTINGS = Kto(beta=0.3, desirable_weight=0.8, undesirable_weight=1.3)


def drawn(count: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Answers with their prompts, and other answers to these."""
    random = np.random.default_rng(5)
    found = []
    for number in range(count):
        prompt = random.integers(1, VOCABULARY, random.integers(2, 6))
        item = []
        for kind in (LEARNT if number % 3 else REJECTED, MISMATCHED):
            answer = random.integers(1, VOCABULARY, random.integers(1, 7))
            kinds = np.concatenate([np.zeros(len(prompt)), np.full(len(answer), kind)]).astype(np.uint8)
            item.append((np.concatenate([prompt, answer]), kinds))
        found.append(item)
    return found


def alone(module, ids: np.ndarray, kinds: np.ndarray) -> torch.Tensor:
    row = torch.tensor([0, *ids])
    log_probs = module.logits(module.hidden(row[None, :-1]))[0].log_softmax(-1)
    return log_probs.gather(1, row[1:, None])[:, 0][torch.from_numpy(kinds != 0)].sum()


def packed(reference, items) -> Microbatch:
    lengths = np.array([sum(len(ids) + 1 for ids, _ in item) for item in items])
    filled = fill(pack(lengths, ROW), items, ROW, delimiter=0)
    tokens, learnt = (
        np.concatenate([np.zeros((len(part), 1), dtype=np.int64), part], axis=1)
        for part in (filled.tokens, filled.learnt)
    )
    rows = torch.from_numpy(tokens)
    with torch.no_grad():
        documents = (rows[:, :-1] == 0).cumsum(1, dtype=torch.int32)
        log_probs = reference.logits(reference.hidden(rows[:, :-1], documents)).log_softmax(-1)
    figures = {REFERENCE: log_probs.gather(2, rows[:, 1:, None])[..., 0].numpy()}
    return Microbatch.of_rows(tokens, delimiter=0, learnt=learnt, figures=figures)


@pytest.mark.parametrize(("family", "seeds"), [("LLAMA", (1, 2)), ("MAMBA2", (1, 2)), ("RWKV7", (2, 1))])
def test_loss_and_gradient_are_those_of_a_plain_loop(family: str, seeds: tuple[int, int]) -> None:
    model = getattr(small_models, family)
    policy, reference = (build(model, VOCABULARY, seed) for seed in seeds)
    items = drawn(9)
    microbatch = packed(reference, items)
    found = RatedAnswers(SETTINGS).loss(policy, microbatch)
    found.sum.backward()
    gradients = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()

    ratios = []
    for item in items:
        for ids, kinds in item:
            with torch.no_grad():
                base = alone(reference, ids, kinds)
            ratios.append(alone(policy, ids, kinds) - base)
    kl = torch.stack(ratios[1::2]).mean().detach().clamp(min=0)
    assert float(kl) > 0, "a KL that says nothing"
    total = torch.zeros(())
    for item, ratio in zip(items, ratios[::2], strict=True):
        if item[0][1].max() == LEARNT:
            total = total + 0.8 * (1 - torch.sigmoid(0.3 * (ratio - kl)))
        else:
            total = total + 1.3 * (1 - torch.sigmoid(0.3 * (kl - ratio)))
    total.backward()
    assert float(found.loss) == pytest.approx(float(total.detach()), rel=1e-4)
    assert float(found.metrics["kl"]) / 9 == pytest.approx(float(kl), abs=1e-4)
    assert float(found.metrics["desirable"]) == sum(item[0][1].max() == LEARNT for item in items)
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=2e-5, rtol=2e-3)


def test_begins_at_half_the_weight() -> None:
    module = build(small_models.LLAMA, VOCABULARY, 1)
    microbatch = packed(module, drawn(6))
    objective = RatedAnswers(Kto())
    batch = Batch(0, 0, [microbatch], {}, 1, microbatch.answers.count)
    found = objective.loss(module, microbatch)
    assert float(found.loss) / objective.normaliser(batch) == pytest.approx(0.5, abs=1e-5)
    assert objective.expected_first_loss(VOCABULARY) == 0.5
    assert RatedAnswers(SETTINGS).expected_first_loss(VOCABULARY) is None
    dry = RatedAnswers(Kto(), own_reference=True).loss(module, microbatch)
    assert float(dry.loss) == pytest.approx(3.0, abs=1e-6)


def test_rows_that_only_fill_a_share_are_worth_nothing() -> None:
    """A worker's microbatch without an answer: 0 and not NaN."""
    module = build(small_models.LLAMA, VOCABULARY, 1)
    tokens, learnt = np.zeros((1, ROW + 1), dtype=np.int64), np.zeros((1, ROW + 1), dtype=np.uint8)
    figures = {REFERENCE: np.zeros((1, ROW), dtype=np.float32)}
    empty = Microbatch.of_rows(tokens, delimiter=0, learnt=learnt, figures=figures)
    found = RatedAnswers(Kto()).loss(module, empty)
    assert float(found.loss) == float(found.metrics["kl"]) == 0.0
