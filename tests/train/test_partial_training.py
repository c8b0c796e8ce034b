"""Steps of a stage that trains a part of the weights, against loops of plain torch."""

import copy

import numpy as np
import pytest
import torch

from cupola import optim
from cupola.data.batch import Batch, Microbatch
from cupola.models import build, lora
from cupola.models.table.trained import ADAPTERS
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import StepValues
from cupola.recipe.schema import Optimizer
from cupola.train.look import Look
from cupola.train.step import train_step
from tests.models.small_models import EXPERTS_BIAS, LLAMA, MAMBA2, RWKV7
from tests.models.test_trained import stage

VOCABULARY = 97
VALUES = StepValues(1e-2, 0.1, 0.95, 0.0)


def batch(seed: int) -> Batch:
    rows = np.random.default_rng(seed).integers(0, VOCABULARY, (4, 17))
    return Batch(0, 64, [Microbatch.of_rows(rows[:2]), Microbatch.of_rows(rows[2:])], {"texts": 64}, 64)


def restricted(model, **settings):
    module = build(model, VOCABULARY, 0)
    lora.restrict(module, stage(**settings), "sft", 0)
    return module


def steps(module, optimizer, count: int = 4, clip: float = 0.5):
    engine = LocalEngine(module, "fp32", "cpu")
    return [train_step(engine, optimizer, NextToken(), batch(n), VALUES, clip) for n in range(count)]


@pytest.mark.oracle
@pytest.mark.parametrize("model", [LLAMA, MAMBA2, RWKV7], ids=["llama", "mamba2", "rwkv7"])
def test_freezing_is_a_plain_loop_over_the_rest(model):
    frozen = ("embedding.weight", "blocks.0.")
    module = restricted(model, freeze=["embedding", "blocks.0.*"])
    twin = build(model, VOCABULARY, 0)
    moving = {n: p for n, p in twin.named_parameters() if not n.startswith(frozen)}
    roles = optim.groups.roles_of(twin)
    groups = [
        {"params": [p for n, p in moving.items() if roles[n] == "matrix"], "weight_decay": 0.1},
        {"params": [p for n, p in moving.items() if roles[n] != "matrix"], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    optimizer = optim.build(module, Optimizer())
    before = {n: p.detach().clone() for n, p in twin.named_parameters()}
    for number, found in enumerate(steps(module, optimizer)):
        twin.zero_grad()
        loss = 0.0
        for part in batch(number).microbatches:
            share = NextToken().loss(twin, part).sum / 64
            share.backward()
            loss += float(share.detach())
        norm = torch.nn.utils.clip_grad_norm_(moving.values(), 0.5)
        reference.step()
        assert found.loss == pytest.approx(loss, rel=1e-4)
        assert found.gradient_norm == pytest.approx(float(norm), rel=1e-3)
    for name, parameter in module.named_parameters():
        if name.startswith(frozen):
            assert torch.equal(parameter, before[name]), name
        else:
            torch.testing.assert_close(parameter, moving[name], rtol=1e-3, atol=2e-4, msg=name)
    assert not any(key.startswith(frozen) for key in optim.optimizer_state(optimizer, module))


@pytest.mark.parametrize("kind", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("model", [LLAMA, MAMBA2, RWKV7], ids=["llama", "mamba2", "rwkv7"])
def test_every_optimizer_learns_by_low_rank_updates(model, kind):
    module = restricted(model, rank=4)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = optim.build(module, Optimizer(kind=kind))
    engine = LocalEngine(module, "fp32", "cpu")
    losses = [train_step(engine, optimizer, NextToken(), batch(0), VALUES, 1.0).loss for _ in range(25)]
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in module.named_parameters():
        assert bool((parameter != before[name]).any()) == name.endswith(ADAPTERS), name
        assert parameter.isfinite().all()
    names = {key.rpartition("/")[0] for key in optim.optimizer_state(optimizer, module)}
    assert names == {p.name for p in module.adapters}


@pytest.mark.parametrize("kind", ["adamw", "muon", "soap"])
def test_state_of_updates_continues_bit_for_bit(kind):
    module = restricted(LLAMA, rank=4, train=["head"])
    optimizer = optim.build(module, Optimizer(kind=kind))
    steps(module, optimizer, 3)
    twin = copy.deepcopy(module)
    resumed = optim.build(twin, Optimizer(kind=kind))
    optim.load_optimizer_state(resumed, twin, optim.optimizer_state(optimizer, module))
    for one, of in ((module, optimizer), (twin, resumed)):
        steps(one, of, 2)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)), name


def test_a_mixture_that_is_adapted_keeps_its_routers_biases():
    module = restricted(EXPERTS_BIAS, rank=4)
    steps(module, optim.build(module, Optimizer()), 2)
    assert not any(buffer.any() for buffer in module.buffers())


def test_a_look_leaves_the_updates_out_of_what_is_weighed():
    module = restricted(LLAMA, rank=4, train=["embedding"])
    optimizer = optim.build(module, Optimizer())
    engine = LocalEngine(module, "fp32", "cpu")
    look = Look(engine, optimizer, NextToken(), batch(0))
    result = train_step(engine, optimizer, NextToken(), batch(0), VALUES, 1.0)
    figures = look.finish(result.gradient_norm)
    assert list(figures["update_ratio"]) == ["embedding"]
    assert set(figures["gradient_norm"]) == {"embedding", "layer_00", "layer_01"}
