"""Building a model, and its initial weights: a function of the seed and each parameter's name alone.

Every parameter is drawn by a generator of its own, keyed by (seed, name), in fp32 on the CPU; so neither
the order of parameters, nor the number of workers, nor a pipeline's cut changes a single weight. It costs
about 5 ns an element on one core. The model is made on the meta device first, so that memory is taken
once.

Normal weights have standard deviation `init_std`; those that write to the residual stream are divided by
sqrt(2 layers) (GPT-2; Radford et al. 2019). The head's (the embedding's where they are tied) is lowered
where the width would otherwise make the first logits wider than `transfer.HEAD_LOGITS`, so that the first
loss is ln(vocabulary) within 3%: with logits of deviation s it is s^2 / 2 above. Under a parametrisation
other than standard, `transfer.deviation` says by how much a parameter's differs from all this.
"""

import math
from hashlib import blake2b

import torch
from torch import Tensor, nn

from cupola.models import draws, table
from cupola.models.stack import LanguageModel
from cupola.models.table import transfer
from cupola.recipe.model import Model


def _normal(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.normal_(0.0, model.init_std, generator=generator)


def _residual(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.normal_(0.0, model.init_std / math.sqrt(2 * model.layers), generator=generator)


def _head(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.normal_(0.0, transfer.head_deviation(model, model.width), generator=generator)


def _one(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.fill_(1.0)


def _zero(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.zero_()


DRAWS: dict[str, draws.Draw] = {
    "normal": _normal,
    "residual": _residual,
    "head": _head,
    "one": _one,
    "zero": _zero,
    **draws.DRAWS,
}
"""By the name that `table.Parameter.draw` gives: fill an fp32 CPU tensor; the number is the block's."""


def draw(parameter: table.Parameter, model: Model, seed: int) -> Tensor:
    """The initial value of one parameter: fp32, on the CPU."""
    key = blake2b(f"{seed}/{parameter.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    tensor = torch.empty(parameter.shape, dtype=torch.float32)
    DRAWS[parameter.draw](tensor, model, parameter.layer, generator)
    if (factor := transfer.deviation(parameter, model)) != 1:
        tensor.mul_(factor)
    return tensor


@torch.no_grad()
def initialise(module: nn.Module, model: Model, vocabulary: int, seed: int, scores: bool = False) -> None:
    """Give every parameter that the module holds (a pipeline stage holds some) its initial value."""
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    for parameter in table.parameters(model, vocabulary, scores):
        if parameter.name in held:
            held.pop(parameter.name).copy_(draw(parameter, model, seed))
    if held:
        raise ValueError(f"parameters that no table declares: {', '.join(held)}")


def build(
    model: Model,
    vocabulary: int,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scores: bool = False,
) -> LanguageModel:
    """The model with its initial weights.

    Args:
        model: the recipe's `model:` block.
        vocabulary: rows of embedding and head (`model.rows(tokenizer.size)`).
        seed: of the weights.
        device: where it lies; on `meta` nothing is drawn.
        dtype: of the parameters.
        scores: with the scalar head of a reward model or a critic.
    """
    with torch.device("meta"):
        module = LanguageModel(model, vocabulary, scores).to(dtype)
    if torch.device(device).type != "meta":
        module = module.to_empty(device=device)
        initialise(module, model, vocabulary, seed, scores)
    return module
