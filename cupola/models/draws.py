"""Initial distributions of the state-space families, as published; the common ones stand in `init`.

Mamba and Mamba-2 (Gu and Dao 2023, appendix; Dao and Gu 2024, and their code): steps log-uniform in 0.001 to
0.1, whose inverse softplus is the bias; decays A uniform in 1 to 16 (Mamba-2) or 1 to the number of states
(Mamba); linear maps and the convolution as torch draws them.

RWKV-7 (Peng et al. 2025, appendix, and the published trainer): what looks arbitrary below (powers, zigzag) is
theirs; it spreads the channels over time scales, and makes every layer's output zero at first. Their matrices
are orthogonal; here they are normal with the same variance, which costs no decomposition. Theirs divides by
layers - 1: with one layer its ratio is taken as 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cupola.recipe.model import Model

Draw = Callable[[Tensor, Model, int, torch.Generator], None]

STEPS = (0.001, 0.1)
"""Smallest and largest step (dt) at first."""
SMALLEST_STEP = 1e-4
DECAYS = (1.0, 16.0)


def _convolution(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    """Weight (channels, taps) and bias: uniform within taps^-1/2."""
    kind = model.mixers()[layer]
    taps = model.mamba.convolution if kind == "mamba" else model.mamba2.convolution
    tensor.uniform_(-(taps**-0.5), taps**-0.5, generator=generator)


def _fan_in(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    """Uniform within inputs^-1/2, as torch draws a linear map."""
    bound = tensor.shape[1] ** -0.5
    tensor.uniform_(-bound, bound, generator=generator)


def _fan_in_residual(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    """Divided by the root of the number of layers that write to the residual stream."""
    _fan_in(tensor, model, layer, generator)
    tensor.div_(math.sqrt(model.layers if model.family in ("mamba", "mamba2") else 2 * model.layers))


def _step_bias(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    low, high = (math.log(step) for step in STEPS)
    steps = tensor.uniform_(low, high, generator=generator).exp_().clamp_(min=SMALLEST_STEP)
    tensor.copy_(steps + torch.log(-torch.expm1(-steps)))


def _mamba2_decay(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.uniform_(*DECAYS, generator=generator).log_()


def _mamba_decay(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.copy_(torch.arange(1, tensor.shape[1] + 1).log().expand_as(tensor))


def _rwkv7_embedding(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.uniform_(-1e-4, 1e-4, generator=generator)


def _rwkv7_matrix(gain: float) -> Draw:
    def draw(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
        tensor.normal_(0.0, gain * model.width**-0.5, generator=generator)

    return draw


def _rwkv7_channel_key(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.normal_(0.0, tensor.shape[0] ** -0.5, generator=generator)


def _rwkv7_shift(power: float) -> Draw:
    """1 - (i / width)^(power (1 - layer / layers)) for channel i."""

    def draw(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
        channels = torch.arange(model.width) / model.width
        tensor.copy_(1 - channels ** (power * (1 - layer / model.layers)))

    return draw


def _rwkv7_shift_channel(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    channels = torch.arange(model.width) / model.width
    tensor.copy_(1 - channels ** ((1 - layer / model.layers) ** 4))


def _depth(model: Model, layer: int) -> float:
    """0 at the first layer, 1 at the last."""
    return layer / (model.layers - 1) if model.layers > 1 else 0.0


def _slope(model: Model) -> Tensor:
    """-1/2 at the first channel, 1/2 at the last."""
    return torch.arange(model.width) / (model.width - 1) - 0.5


def _zigzag(model: Model) -> Tensor:
    """-1 to 1 within each head, flat in the middle."""
    middle = (model.rwkv7.head_width - 1) / 2
    within = (torch.arange(model.width) % model.rwkv7.head_width - middle) / middle
    return within * within.abs()


def _rwkv7_decay_bias(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    ramp = (_slope(model) + 0.5) ** (1 + _depth(model, layer) ** 0.3)
    tensor.copy_(-6 + 6 * ramp + 0.5 + 2.5 * _zigzag(model))


def _rwkv7_rate_bias(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.copy_(-0.19 + 0.3 * _zigzag(model) + 0.4 * _slope(model))


def _rwkv7_mix_bias(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.copy_(0.73 - 0.4 * _slope(model))


def _rwkv7_key_scale(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.copy_(0.71 - 0.1 * _slope(model))


def _rwkv7_norm(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
    tensor.fill_(((1 + layer) / model.layers) ** 0.7)


def _constant(value: float) -> Draw:
    def draw(tensor: Tensor, model: Model, layer: int, generator: torch.Generator) -> None:
        tensor.fill_(value)

    return draw


DRAWS: dict[str, Draw] = {
    "fan_in": _fan_in,
    "fan_in_residual": _fan_in_residual,
    "convolution": _convolution,
    "mamba_dt_bias": _step_bias,
    "mamba2_a_log": _mamba2_decay,
    "mamba_a_log": _mamba_decay,
    "rwkv7_embedding": _rwkv7_embedding,
    "rwkv7_receptance": _rwkv7_matrix(1.0),
    "rwkv7_key": _rwkv7_matrix(0.1),
    "rwkv7_value": _rwkv7_matrix(1.0),
    "rwkv7_up": _rwkv7_matrix(0.1),
    "rwkv7_channel_key": _rwkv7_channel_key,
    "rwkv7_shift_receptance": _rwkv7_shift(0.2),
    "rwkv7_shift_gate": _rwkv7_shift(0.2),
    "rwkv7_shift_decay": _rwkv7_shift(0.9),
    "rwkv7_shift_rate": _rwkv7_shift(0.9),
    "rwkv7_shift_key": _rwkv7_shift(0.7),
    "rwkv7_shift_value": _rwkv7_shift(0.7),
    "rwkv7_shift_channel": _rwkv7_shift_channel,
    "rwkv7_decay_bias": _rwkv7_decay_bias,
    "rwkv7_rate_bias": _rwkv7_rate_bias,
    "rwkv7_mix_bias": _rwkv7_mix_bias,
    "rwkv7_key_scale": _rwkv7_key_scale,
    "rwkv7_key_rate": _constant(1.02),
    "rwkv7_bonus": _constant(-0.04),
    "rwkv7_norm": _rwkv7_norm,
}
