"""Parameter groups by the role that a model declares for each parameter, never by its shape.

Guarantees: decay falls on matrices only; every group has `role`, `scale`, its learning rate, and `decay`, its
weight decay, both relative to the schedule's. Parameters of one role make several groups only where a
parametrisation gives them different factors (`models.table.transfer`).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cupola.models import table
from cupola.models.table import transfer
from cupola.recipe import schema
from cupola.recipe.clock import StepValues

ROLES: tuple[table.Role, ...] = ("matrix", "low_rank", "embedding", "head", "vector")
"""Of what gradients move, in the order of the groups."""


def roles_of(module: Any) -> dict[str, table.Role]:
    """The declared role of each parameter of a `cupola.models` module."""
    declared = {p.name: p.role for p in module.declared()}
    return {name: declared[name] for name, _ in module.named_parameters()}


def fused_in(module: Any) -> dict[str, tuple[int, ...]]:
    """The rows of each of the matrices that are fused in one parameter of a `cupola.models` module."""
    return {p.name: p.fused for p in module.declared() if p.fused}


def factors_of(module: Any, kind: str) -> dict[str, transfer.Factors]:
    """What the parametrisation says of each parameter of a `cupola.models` module.

    Args:
        kind: of the optimizer.
    """
    return {p.name: transfer.factors(p, module.settings, kind) for p in module.declared()}


def by_role(
    module: nn.Module,
    settings: schema.Optimizer,
    roles: Mapping[str, table.Role],
    factors: Mapping[str, transfer.Factors] | None = None,
) -> list[dict[str, Any]]:
    """A group for each role of which a parameter is trained, and for each of its factors.

    Args:
        factors: by name; None: all are 1.
    """
    found = []
    for role in ROLES:
        members: dict[transfer.Factors, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if roles[name] == role and parameter.requires_grad:
                members.setdefault(factors[name] if factors else transfer.Factors(), []).append(parameter)
        matrix = role == "matrix"
        for own, chosen in members.items():
            found.append(
                {
                    "params": chosen,
                    "role": role,
                    "scale": own.learning_rate * (1.0 if matrix else settings.embedding_scale),
                    "decay": own.weight_decay * matrix,
                    "weight_decay": 0.0,
                    "eps": settings.epsilon * own.epsilon,
                }
            )
    return found


def set_values(optimizer: Optimizer, values: StepValues) -> None:
    """Give every group its share of what the schedules say for a step."""
    for group in optimizer.param_groups:
        group["lr"] = values.learning_rate * group["scale"]
        group["weight_decay"] = values.weight_decay * group["decay"]
        if "momentum" in group:
            group["momentum"] = values.momentum
