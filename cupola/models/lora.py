"""Training a part of the weights: freezing, and LoRA (Hu et al. 2021, arXiv 2106.09685).

`restrict` makes a module train what a stage says. What is frozen asks for no gradient, so that nothing below
the lowest trained parameter has a backward pass and no product makes the gradient of a frozen matrix. An
adapted linear layer keeps its name and those of its weights; A and B stand beside them, and B is 0 at first,
so that the model begins as what it was. `merge` adds the updates to the weights and takes A and B away: what
remains is the plain model, in the layout of its table.

Costs: for a layer rank (outputs + inputs) numbers, 6 FLOPs for each of them and token, and one more pass over
its outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cupola.models.init import draw
from cupola.models.layers import Linear, linear
from cupola.models.stack import LanguageModel
from cupola.models.table import SCORE, trained
from cupola.models.table.declaration import Parameter
from cupola.models.table.trained import ADAPTERS, WEIGHT, A, B, Trained
from cupola.recipe.schema import Stage


class AdaptedLinear(Linear):
    """x W^T + bias + scale (x A^T) B^T: a linear layer's own weights, and its update.

    Args:
        base: the layer whose weights it holds from now on.
        rank: rows of `lora_a`, columns of `lora_b`.
        scale: of the update.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        own = linear(x, self.weight, self.bias)
        return torch.add(own, linear(linear(x, self.lora_a), self.lora_b), alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The plain layer that computes the same; its weights are changed in place."""
        plain = Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        plain.weight.copy_(merged_weight(self.weight, self.lora_a, self.lora_b, self.scale))
        return plain


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A."""
    return torch.addmm(weight, b, a, alpha=scale)


def restrict(module: LanguageModel, stage: Stage, name: str, seed: int) -> Trained:
    """Make a module train what a stage says, and nothing else.

    Args:
        module: as `build` makes it; all of it asks for gradients.
        name: of the stage, which LoRA's first weights depend on, so that two stages begin differently.
        seed: of the weights.

    Returns:
        What it trains.
    """
    part = trained.of_stage(module.settings, module.vocabulary, stage)
    for parameter in part.frozen:
        module.get_parameter(parameter.name).requires_grad_(False)
    if stage.lora is not None:
        _attach(module, part.adapters, stage.lora.scale(), name, seed)
    return part


@torch.no_grad()
def _attach(module: LanguageModel, adapters: Sequence[Parameter], scale: float, name: str, seed: int) -> None:
    for parameter in adapters[::2]:
        layer = parameter.name.rpartition(".")[0]
        base = module.get_submodule(layer)
        assert isinstance(base, nn.Linear)
        module.set_submodule(layer, AdaptedLinear(base, parameter.shape[0], scale))
    module.adapters = tuple(adapters)
    for parameter in adapters:
        # For every width alike: a parametrisation's deviations are of weights that stand by themselves.
        own = replace(parameter, name=f"{name}/{parameter.name}", base=None)
        module.get_parameter(parameter.name).copy_(draw(own, module.settings, seed))


def merge(module: LanguageModel) -> dict[str, Tensor]:
    """Add every update to its weight, in place, and make each adapted layer a plain one.

    Returns:
        A and B under their names; empty where there are none.
    """
    taken = {p.name: module.get_parameter(p.name).detach() for p in module.adapters}
    for parameter in module.adapters[::2]:
        layer = parameter.name.rpartition(".")[0]
        adapted = module.get_submodule(layer)
        assert isinstance(adapted, AdaptedLinear)
        module.set_submodule(layer, adapted.merged())
    module.adapters = ()
    return taken


def holds_adapters(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has updates that are not merged."""
    return any(name.endswith(f".{A}") for name in weights)


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The plain model's state dict, as `merge` makes it."""
    found = {name: tensor for name, tensor in weights.items() if not name.endswith(ADAPTERS)}
    for name in weights:
        layer, _, part = name.rpartition(".")
        if part == A:
            weight = found[f"{layer}{WEIGHT}"]
            found[f"{layer}{WEIGHT}"] = merged_weight(weight, weights[name], weights[f"{layer}.{B}"], scale)
    return found


def load(module: LanguageModel, weights: Mapping[str, Tensor], with_score: bool = False) -> None:
    """Take over weights; those of the plain model leave the updates as they are.

    Args:
        with_score: the scalar head too; else the module's own stays, and one among the weights is left out.

    Raises:
        RuntimeError: they are of another model.
    """
    own: dict[str, Tensor] = {p.name: module.get_parameter(p.name) for p in module.adapters}
    if not with_score:
        weights = {name: tensor for name, tensor in weights.items() if name != SCORE}
        if module.score is not None:
            own[SCORE] = module.score.weight
    module.load_state_dict({**own, **weights})
