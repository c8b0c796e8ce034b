"""One function for each optimizer that is measured: a contender whose step is the update alone.

All update the same parameters, those of Cupola's model of the shape, from the same gradients, which are drawn
once. All leave embedding, head and vectors to AdamW; Muon's and SOAP's peers take torch's fused one for them,
save one contender, which has all of them as the peer's documentation calls it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.contenders import BETAS, LEARNING_RATE, WEIGHT_DECAY, Contender, Settings
from bench.families import transformer
from cupola import optim
from cupola.models import build
from cupola.optim.groups import roles_of
from cupola.recipe.clock import StepValues
from cupola.recipe.schema import Optimizer
from cupola.train.memory import keep_freed_memory

MOMENTUM = 0.95
PRECONDITION_EVERY = 10
"""SOAP's interval: the paper's."""
Update = Callable[[], object]


def ours(kind: Any, module: Any, **settings: Any) -> list[Update]:
    """Cupola's optimizer of this kind."""
    optimizer = optim.build(module, Optimizer(kind=kind, betas=BETAS, **settings))
    optim.set_values(optimizer, StepValues(LEARNING_RATE, WEIGHT_DECAY, MOMENTUM, z_loss=0.0))
    return [optimizer.step]


def adamw(module: Any, **way: bool) -> list[Update]:
    """torch's, with decay of matrices only."""
    matrices, others = _split(module)
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, **way).step]


def muon(module: Any) -> list[Update]:
    """torch's, at AdamW's size."""
    matrices, others = _split(module)
    optimizer = torch.optim.Muon(
        matrices,
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        momentum=MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    return [optimizer.step, _fused(others)]


def soap(module: Any, whole: bool = False) -> list[Update]:
    """pytorch-optimizer's.

    Args:
        whole: give it all parameters, embedding and head among them, as `SOAP(model.parameters())` does.
    """
    from pytorch_optimizer import SOAP

    matrices, others = _split(module)
    optimizer = SOAP(
        [*matrices, *others] if whole else matrices,
        lr=LEARNING_RATE,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        precondition_frequency=PRECONDITION_EVERY,
    )
    return [optimizer.step] if whole else [optimizer.step, _fused(others)]


def _split(module: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices and the rest, by declared role."""
    roles = roles_of(module)
    named = list(module.named_parameters())
    return (
        [p for name, p in named if roles[name] == "matrix"],
        [p for name, p in named if roles[name] != "matrix"],
    )


def _fused(parameters: list[Tensor]) -> Update:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True).step


def contender(make: Callable[[Any], list[Update]], settings: Settings) -> Contender:
    """The parameters and their gradients, and the update as a step."""
    keep_freed_memory()
    module = build(transformer(settings.shape), settings.shape.vocabulary, seed=0, device=settings.device)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.mul_(1e-3).to(settings.device)
    updates = make(module)

    def step(tokens: Tensor, targets: Tensor) -> float:
        for update in updates:
            update()
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return 0.0

    return Contender(sum(p.numel() for p in module.parameters()), step)


MAKERS: dict[str, Callable[[Any], list[Update]]] = {
    "adamw": partial(ours, "adamw"),
    "torch adamw fused": partial(adamw, fused=True),
    "torch adamw foreach": partial(adamw, foreach=True),
    "torch adamw for-loop": partial(adamw, foreach=False),
    "muon": partial(ours, "muon"),
    "muon, torch's iteration": partial(ours, "muon", newton_schulz="quintic"),
    "torch muon": muon,
    "soap": partial(ours, "soap"),
    "pytorch-optimizer soap": soap,
    "pytorch-optimizer soap, all parameters": partial(soap, whole=True),
}
OPTIMIZERS: dict[str, Callable[[Settings], Contender]] = {
    name: partial(contender, make) for name, make in MAKERS.items()
}
