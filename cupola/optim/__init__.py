"""Optimizers, grouped by the role that a model declares for each parameter, never by shape.

`groups` makes the groups, `adamw` is the step of what is no matrix (and, with `kind: adamw`, of what is),
`muon` and `soap` those of matrices, `layout` what they ask of a sharded matrix, `state` takes the state out
and in.
"""

from collections.abc import Mapping

import torch
from torch import nn

from cupola.models import table
from cupola.optim.adamw import AdamW
from cupola.optim.groups import by_role, factors_of, fused_in, roles_of, set_values
from cupola.optim.muon import Muon
from cupola.optim.newton_schulz import iteration_dtype
from cupola.optim.soap import Soap
from cupola.optim.state import load_optimizer_state, optimizer_state
from cupola.recipe import schema

__all__ = [
    "AdamW",
    "Muon",
    "Soap",
    "build",
    "iteration_dtype",
    "load_optimizer_state",
    "optimizer_state",
    "set_values",
]


def build(
    module: nn.Module,
    settings: schema.Optimizer | None,
    roles: Mapping[str, table.Role] | None = None,
    fused: Mapping[str, tuple[int, ...]] | None = None,
) -> AdamW:
    """The optimizer of a stage; its learning rate and weight decay are 0 until `set_values`.

    Args:
        settings: None for the defaults.
        roles: of every parameter by name; by default as the module's table declares them, with the learning
            rates that its parametrisation asks for.
        fused: rows of each of the matrices that are fused in a parameter, by name; by default as declared.
    """
    settings = settings or schema.Optimizer()
    factors = factors_of(module, settings.kind) if roles is None else None
    found = by_role(module, settings, roles or roles_of(module), factors)
    betas, eps = settings.betas, settings.epsilon
    if settings.kind == "muon":
        rows = fused_in(module) if fused is None and roles is None else fused or {}
        in_group = {module.get_parameter(name): own for name, own in rows.items()}
        found = [{**group, "fused": in_group} for group in found]
        return Muon(
            found,
            lr=0.0,
            nesterov=settings.nesterov,
            newton_schulz=settings.newton_schulz,
            newton_schulz_steps=settings.newton_schulz_steps,
            betas=betas,
            eps=eps,
        )
    if settings.kind == "soap":
        return Soap(
            found,
            lr=0.0,
            betas=betas,
            eps=eps,
            precondition_every=settings.precondition_every,
            covariance_decay=settings.covariance_decay,
            largest_preconditioned=settings.largest_preconditioned,
            one_sided_above=settings.one_sided_above,
            dtype=torch.bfloat16 if settings.state_dtype == "bf16" else torch.float32,
        )
    return AdamW(found, lr=0.0, betas=betas, eps=eps)
