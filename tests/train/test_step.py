import copy
import math

import numpy as np
import pytest
import torch

from cupola import optim
from cupola.data.batch import Batch, Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import StepValues
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer
from cupola.train.step import clip, train_step
from tests.models.small_models import EXPERTS, EXPERTS_BIAS


@pytest.fixture
def module():
    return build(Model(layers=1, width=16, heads=2), 50, seed=1)


def batch(seed: int = 0) -> Batch:
    rows = np.random.default_rng(seed).integers(0, 50, (4, 9))
    return Batch(0, 32, [Microbatch.of_rows(rows[:2]), Microbatch.of_rows(rows[2:])], {"texts": 32}, 32)


def step(module, optimizer, limit=1.0, rate=1e-2):
    return train_step(
        LocalEngine(module, "fp32", "cpu"),
        optimizer,
        NextToken(),
        batch(),
        StepValues(rate, 0.1, 0.95, 0.0),
        limit,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_is_the_plain_step(module, limit):
    twin = copy.deepcopy(module)
    whole = Microbatch.of_rows(np.random.default_rng(0).integers(0, 50, (4, 9)))
    loss = NextToken().loss(twin, whole).sum / 32
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
    reference = optim.build(twin, Optimizer())
    optim.set_values(reference, StepValues(1e-2, 0.1, 0.95, 0.0))
    reference.step()
    result = step(module, optim.build(module, Optimizer()), limit)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert not result.skipped
    for (name, found), expected in zip(module.named_parameters(), twin.parameters(), strict=True):
        # The first step of AdamW is the sign of the gradient: a few elements near 0 may differ.
        assert float((found - expected).abs().mean()) < 1e-4, name


@pytest.mark.parametrize("limit", [0.5, 50.0])
def test_clip(limit):
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    clip(gradients, 5.0, limit)
    norm = math.hypot(*(float(g.norm()) for g in gradients))
    assert norm == pytest.approx(min(5.0, limit))


def test_gradients_do_not_outlive_the_step(module):
    step(module, optim.build(module, Optimizer()))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_step_that_is_not_finite_changes_nothing(module):
    optimizer = optim.build(module, Optimizer())
    step(module, optimizer)
    weights = copy.deepcopy(module.state_dict())
    state = {key: value.clone() for key, value in optim.optimizer_state(optimizer, module).items()}
    handle = module.norm.register_forward_hook(lambda _, __, hidden: hidden * float("nan"))
    result = step(module, optimizer)
    handle.remove()
    assert result.skipped
    assert math.isnan(result.loss)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(v, state[k]) for k, v in optim.optimizer_state(optimizer, module).items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not step(module, optimizer).skipped


def test_a_finite_loss_with_an_infinite_gradient_is_skipped_too(module):
    module.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    result = step(module, optim.build(module, Optimizer()))
    assert math.isfinite(result.loss)
    assert result.skipped


def biases(module) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in module.named_buffers() if name.endswith("balance_bias")]


def test_the_experts_biases_move_after_an_update_and_only_then():
    module = build(EXPERTS_BIAS, 50, seed=1)
    optimizer = optim.build(module, Optimizer())
    handle = module.norm.register_forward_hook(lambda _, __, hidden: hidden * float("nan"))
    assert step(module, optimizer).skipped
    assert not any(bias.any() for bias in biases(module))
    handle.remove()
    with torch.no_grad():
        whole = batch().microbatches
        loads = [
            sum(parts) for parts in zip(*(module(m.tokens, m.documents).loads for m in whole), strict=True)
        ]
    result = step(module, optimizer)
    for bias, load in zip(biases(module), loads, strict=True):
        assert torch.equal(bias, 0.01 * torch.sign(load.float().mean() - load))
    worst = max(float(load.max() / load.float().mean()) for load in loads)
    assert result.metrics == {"load_imbalance": pytest.approx(worst)}


@pytest.mark.parametrize("kind", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("model", [EXPERTS, EXPERTS_BIAS], ids=["auxiliary", "bias"])
def test_a_mixture_of_experts_trains(model, kind):
    module = build(model, 50, seed=1)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = optim.build(module, Optimizer(kind=kind))
    results = [step(module, optimizer) for _ in range(40)]
    assert results[-1].loss < 0.3 * results[0].loss
    for name, parameter in module.named_parameters():
        changed = (parameter != before[name]).flatten(1 if parameter.ndim == 3 else 0)
        assert changed.any(-1).all(), name
