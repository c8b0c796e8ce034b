"""By how much a parameter's initial deviation, learning rate, decay and epsilon differ from the base model's.

Pure functions of a declared parameter, whose `base` is its shape in the base model, and the model's settings;
without a base (parametrisation standard) every factor is 1. `cupola.recipe.parametrisation` has the settings
and the multipliers of the forward pass.

The rule is the spectral condition (Yang, Simon and Bernstein 2023, arXiv 2310.17813): a matrix and its
updates have spectral norms in proportion to sqrt(outputs / inputs). With n = inputs, m = outputs, and each
factor the ratio of the expression here and in the base model:

                      initial deviation            learning rate
    matrix, AdamW     min(1, sqrt(m / n)) / sqrt(n)  1 / n
    matrix, SOAP      the same                       1 / n
    matrix, Muon      the same                       sqrt(m / n) / sqrt(max(m, n))
    embedding         1                              1
    head              1, logits divided by width     1
    vector            1                              1

- AdamW moves every element of a matrix by about the learning rate, in few directions: a norm of sqrt(m n).
  SOAP's elements are as large; its directions are more, so 1 / n is on the safe side (the larger the width,
  the smaller its steps against what the condition allows).
- Muon's update here has the norm 0.2 sqrt(max(m, n)) (`cupola.optim.muon`), hence its rule; for matrices that
  grow in both directions it is width^-1/2, where Adam's is width^-1.
- Matrices whose outputs do not grow (the router, Mamba's B and C) are Tensor Programs V's output weights
  (table 8): their deviation falls with 1 / n.
- Low-rank maps (RWKV-7) are matrices with AdamW's rule, whatever the optimizer.

Inside blocks the learning rate carries the factor of depth (`parametrisation`'s table). Adam's epsilon
follows the gradients, which fall with the width, and with the multiplier of residual branches (Dey et al.
2025). Weight decay is divided by the learning rate's factor of width, so that learning rate times decay,
which says over how many steps weights are averaged (Wang and Aitchison 2024, arXiv 2405.13698), is the base
model's (as in Dey et al. 2025).
"""

import math
from typing import NamedTuple

from cupola.models.table.declaration import Parameter
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import depth_exponent, depth_ratio, width_ratio

HEAD_LOGITS = 0.4
"""Largest standard deviation of the first logits."""
RESIDUAL_DRAWS = ("residual", "fan_in_residual")
"""Those that are divided by the root of the number of layers."""


def head_deviation(model: Model, width: int) -> float:
    """Initial standard deviation of the head (the embedding's where they are tied) at a width."""
    return min(model.init_std, HEAD_LOGITS / math.sqrt(width))


def deviation(parameter: Parameter, model: Model) -> float:
    """The initial standard deviation, relative to what `cupola.models.init` draws for standard."""
    if parameter.base is None:
        return 1.0
    if parameter.draw == "head":
        base_width = parameter.base[-1]
        return head_deviation(model, base_width) / head_deviation(model, model.width)
    if parameter.role not in ("matrix", "low_rank"):
        return 1.0
    factor = _spectral(parameter.shape) / _spectral(parameter.base)
    factor /= _standard(parameter.draw, parameter.shape) / _standard(parameter.draw, parameter.base)
    if parameter.draw == "rwkv7_up":  # drawn for the width, which is not its number of inputs
        factor *= math.sqrt(width_ratio(model))
    if parameter.draw in RESIDUAL_DRAWS:
        factor *= math.sqrt(depth_ratio(model))
    return factor


class Factors(NamedTuple):
    """What the recipe's settings of an optimizer are multiplied by for one parameter."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0


def factors(parameter: Parameter, model: Model, kind: str) -> Factors:
    """Of a parameter in training.

    Args:
        kind: of the optimizer, as in the recipe.
    """
    if parameter.base is None:
        return Factors()
    width = _width_factor(parameter, kind)
    epsilon = 1.0 / width_ratio(model) / depth_ratio(model) ** depth_exponent(model)
    return Factors(width * _depth_factor(parameter, model), 1.0 / width, epsilon)


def _spectral(shape: tuple[int, ...]) -> float:
    """A deviation for which the spectral norm is sqrt(outputs / inputs), but for a constant."""
    outputs, inputs = shape[-2:]
    return min(1.0, math.sqrt(outputs / inputs)) / math.sqrt(inputs)


def _standard(draw: str, shape: tuple[int, ...]) -> float:
    """How the deviation of a named draw depends on the shape, but for a constant."""
    outputs, inputs = shape[-2:]
    if draw in ("fan_in", "fan_in_residual", "rwkv7_receptance", "rwkv7_key", "rwkv7_value"):
        return inputs**-0.5
    if draw == "rwkv7_channel_key":
        return outputs**-0.5
    return 1.0


def _width_factor(parameter: Parameter, kind: str) -> float:
    assert parameter.base is not None
    if parameter.role not in ("matrix", "low_rank"):
        return 1.0
    muon = kind == "muon" and parameter.role == "matrix"
    rule = _muon if muon else _adam
    return rule(parameter.shape) / rule(parameter.base)


def _adam(shape: tuple[int, ...]) -> float:
    return 1.0 / shape[-1]


def _muon(shape: tuple[int, ...]) -> float:
    outputs, inputs = shape[-2:]
    return math.sqrt(outputs / inputs / max(outputs, inputs))


def _depth_factor(parameter: Parameter, model: Model) -> float:
    if not parameter.name.startswith("blocks."):
        return 1.0
    return depth_ratio(model) ** (depth_exponent(model) - 1)
