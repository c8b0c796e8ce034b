"""Parameter groups by the role that a model declares for each parameter, never by its shape.

Guarantees: decay falls on matrices only; every group has `role`, and `scale`, its learning rate relative to
the schedule's.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cupola.models import table
from cupola.recipe import schema

ROLES: tuple[table.Role, ...] = ("matrix", "low_rank", "embedding", "head", "vector")
"""Of what gradients move, in the order of the groups."""


def roles_of(module: Any) -> dict[str, table.Role]:
    """The declared role of each parameter of a `cupola.models` module."""
    declared = {p.name: p.role for p in table.parameters(module.settings, module.vocabulary)}
    return {name: declared[name] for name, _ in module.named_parameters()}


def by_role(
    module: nn.Module, settings: schema.Optimizer, roles: Mapping[str, table.Role]
) -> list[dict[str, Any]]:
    """A group for each role that has a parameter."""
    found = []
    for role in ROLES:
        chosen = [p for name, p in module.named_parameters() if roles[name] == role and p.requires_grad]
        if chosen:
            matrix = role == "matrix"
            found.append(
                {
                    "params": chosen,
                    "role": role,
                    "scale": 1.0 if matrix else settings.embedding_scale,
                    "weight_decay": settings.weight_decay if matrix else 0.0,
                }
            )
    return found


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]
