"""The training step on a GPU against the same step on the CPU."""

import copy

import numpy as np
import pytest
import torch

from cupola import optim
from cupola.data.batch import Batch, Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.objectives.cross_entropy import linear_cross_entropy, token_losses
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import StepValues
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer
from cupola.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def test_cross_entropy():
    hidden, weight = torch.randn(300, 64), torch.randn(1000, 64) / 8
    targets = torch.randint(1000, (300,))
    targets[::7] = -100
    results = []
    for device in ("cpu", "cuda"):
        leaves = [part.to(device).requires_grad_() for part in (hidden, weight)]
        total, _, _ = linear_cross_entropy(*leaves, targets.to(device), 1e-3)
        losses = token_losses(*leaves, targets.to(device))
        results.append([p.detach().cpu() for p in (total, losses, *torch.autograd.grad(total, leaves))])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_of_some_steps(kind, precision):
    module = build(Model(layers=2, width=64, heads=2), 96, seed=1)
    batches = [
        Batch(0, 256, [Microbatch.of_rows(np.random.default_rng(n).integers(0, 96, (4, 65)))], {}, 256)
        for n in range(4)
    ]
    curves = []
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(module).to(device)
        engine = LocalEngine(copied, precision, device)
        optimizer = optim.build(copied, Optimizer(kind=kind))
        objective = NextToken()
        curves.append(
            [
                train_step(engine, optimizer, objective, b, StepValues(1e-3, 0.1, 0.95, 0.0), 1.0).loss
                for b in batches
            ]
        )
    assert curves[1] == pytest.approx(curves[0], rel=1e-3 if precision == "fp32" else 1e-2)
