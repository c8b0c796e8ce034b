"""The training step.

Guarantees: an update is made from finite numbers or not at all. A batch whose loss or gradient is not
finite changes nothing but the position: the caller counts it and says so.
Costs: the host waits for the device once a step, for the loss and the gradient's norm together.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from cupola.data.batch import Batch
from cupola.models import experts
from cupola.objectives import Objective
from cupola.optim import set_values
from cupola.parallel.engine import LocalEngine, PassResult
from cupola.recipe.clock import StepValues


@dataclass(frozen=True)
class StepResult:
    """What one step came to.

    Attributes:
        loss: mean over the batch, in the objective's unit.
        gradient_norm: before clipping.
        skipped: loss or gradient was not finite, and no update was made.
        metrics: the objective's further figures; with mixtures of experts also `load_imbalance`, the load of
            the most crowded expert of all layers over its layer's mean.
    """

    loss: float
    gradient_norm: float
    skipped: bool
    metrics: dict[str, float]


def train_step(
    engine: LocalEngine,
    optimizer: Optimizer,
    objective: Objective,
    batch: Batch,
    values: StepValues,
    gradient_clip: float,
) -> StepResult:
    """One batch: gradients, clipping, update."""
    objective = objective.at(values)
    normaliser = objective.normaliser(batch)
    passed = engine.forward_backward(batch.microbatches, objective, normaliser, batch.valid_tokens)
    return update(engine, optimizer, passed, values, gradient_clip)


def update(
    engine: LocalEngine, optimizer: Optimizer, passed: PassResult, values: StepValues, gradient_clip: float
) -> StepResult:
    """What a step does with its gradients: clipping, the update, and the experts' biases, which follow their
    loads; then the gradients are freed."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm_on_device = torch.nn.utils.get_total_norm(gradients)
    metrics = dict(passed.metrics)
    if passed.loads:
        metrics["load_imbalance"] = experts.imbalance(passed.loads)
    loss, total, norm, *figures = torch.stack(
        [passed.loss, passed.total, norm_on_device, *metrics.values()]
    ).tolist()
    finite = math.isfinite(total) and math.isfinite(norm)
    if finite:
        clip(gradients, norm, gradient_clip)
        set_values(optimizer, values)
        optimizer.step()
        experts.rebalance(engine.module, passed.loads)
    # Not zeroed but freed: the next backward pass stores its gradients without adding.
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, not finite, dict(zip(metrics, figures, strict=True)))


def clip(gradients: list[Tensor], norm: float, limit: float) -> None:
    """Scale gradients of a known total norm in place so that it is at most `limit`.

    Where it is already, nothing is read or written: unlike `torch.nn.utils.clip_grad_norm_`, which always
    multiplies, because it does not know the norm on the host.
    """
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
