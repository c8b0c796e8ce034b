"""Optimizers, grouped by the role that a model declares for each parameter, never by shape.

Guarantees: decay falls on matrices only; every group has `role` names and a `scale`, its learning rate
relative to the schedule's; state goes out and in under the parameters' names, so that nothing in a
checkpoint depends on a layout or on the order of parameters.
Costs: a step of AdamW is torch's fused kernel, a fifth of the plain loop's time on CPU; Muon's is stated
in `cupola.optim.muon`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cupola.models import table
from cupola.optim.muon import Muon, iteration_dtype
from cupola.recipe import schema

__all__ = ["Muon", "build", "iteration_dtype", "load_optimizer_state", "optimizer_state", "set_learning_rate"]


def roles_of(module: Any) -> dict[str, table.Role]:
    """The declared role of each parameter of a `cupola.models` module."""
    declared = {p.name: p.role for p in table.parameters(module.settings, module.vocabulary)}
    return {name: declared[name] for name, _ in module.named_parameters()}


def build(
    module: nn.Module,
    settings: schema.Optimizer | None,
    roles: Mapping[str, table.Role] | None = None,
) -> Optimizer:
    """The optimizer of a stage; its learning rate is 0 until `set_learning_rate`.

    Args:
        settings: None for the defaults.
        roles: of every parameter by name; by default as the module's table declares them.
    """
    settings = settings or schema.Optimizer()
    groups = _groups(module, settings, roles or roles_of(module))
    betas, eps = settings.betas, settings.epsilon
    if settings.kind == "muon":
        return Muon(groups, lr=0.0, momentum=settings.momentum, betas=betas, eps=eps)
    # The fused kernel reads each number once; it exists for these devices in every torch we support.
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)


def _groups(
    module: nn.Module, settings: schema.Optimizer, roles: Mapping[str, table.Role]
) -> list[dict[str, Any]]:
    groups = []
    for role in ("matrix", "low_rank", "embedding", "head", "vector"):
        chosen = [p for name, p in module.named_parameters() if roles[name] == role and p.requires_grad]
        if chosen:
            matrix = role == "matrix"
            groups.append(
                {
                    "params": chosen,
                    "role": role,
                    "scale": 1.0 if matrix else settings.embedding_scale,
                    "weight_decay": settings.weight_decay if matrix else 0.0,
                }
            )
    return groups


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state as "parameter/state" -> tensor: the tensors themselves, not copies. Empty before the first
    step."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: Optimizer, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_state` gave; values are copied.

    Raises:
        ValueError: it is of another model or another optimizer; the optimizer is unchanged.
    """
    parameters = dict(module.named_parameters())
    expected = set()
    if state:
        roles = {p: group["role"] for group in optimizer.param_groups for p in group["params"]}
        names = {name: roles[p] for name, p in parameters.items() if p in roles}
        expected = {f"{name}/{part}" for name, role in names.items() for part in _parts(optimizer, role)}
    if different := expected ^ state.keys():
        raise ValueError(
            f"the optimizer's state is of another model or another optimizer: {min(different)!r} is "
            f"{'missing' if min(different) in expected else 'not expected'}"
        )
    taken: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.rpartition("/")
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(
                f"the optimizer's state {key!r} has shape {tuple(value.shape)}, "
                f"the parameter {tuple(parameter.shape)}"
            )
        # torch's fused kernels want the count of steps on the parameter's device as well.
        taken.setdefault(parameter, {})[part] = value.detach().to(parameter.device, copy=True)
    optimizer.state.clear()
    optimizer.state.update(taken)


def _parts(optimizer: Optimizer, role: str) -> tuple[str, ...]:
    """What the optimizer keeps of a parameter."""
    if isinstance(optimizer, Muon) and role == "matrix":
        return ("momentum",)
    return ("step", "exp_avg", "exp_avg_sq")
