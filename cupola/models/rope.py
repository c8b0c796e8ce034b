"""Rotary position embedding (Su et al. 2021), with the half-split convention of Hugging Face.

Channel i of a head is paired with channel i + head_width / 2. Frequencies and angles are computed in
fp64 and rounded once, so that position 100,000 is as good as position 1; the rotation is always done in
fp32 and rounded once to the input's dtype. `rotate` has its own backward (the rotation the other way): three
passes over memory instead of the six of the textbook form, and nothing saved but the tables.
A factor of YaRN's is in the tables, so that it costs nothing.
`rotate_reference` is the textbook form that the tests compare with.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.recipe.rotary import ORIGINAL, Rope


class Rotation(NamedTuple):
    """Tables of `length` positions: cos (length, head_width), sin (length, head_width / 2), fp32; times
    `attention_factor`."""

    cos: Tensor
    sin: Tensor

    def at(self, start: int, end: int) -> "Rotation":
        """The positions from start to end."""
        return Rotation(self.cos[start:end], self.sin[start:end])


def frequencies(rope: Rope, head_width: int) -> Tensor:
    """Radians per position of each pair of channels, (head_width / 2,), fp64.

    `linear` divides all of them (Chen et al. 2023). `llama3` divides those with wavelengths above
    original_max_position_embeddings / low_freq_factor, keeps those below the same over high_freq_factor,
    and interpolates between (Llama 3.1; Grattafiori et al. 2024). `yarn` does so along the channels and
    not the wavelengths (Peng et al. 2023, section 3.2). `dynamic` is that of its original context: for a
    longer one a base is settled beforehand (`Rope.at`).
    """
    exponents = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    plain = rope.rope_theta**-exponents
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        turns = _original(rope) * plain / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    elif rope.rope_type == "yarn":
        kept = 1 - _ramp(rope, head_width)
    else:
        return plain
    kept = kept.clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _original(rope: Rope) -> int:
    if rope.original_max_position_embeddings is None:
        raise ValueError(f"rope_type {rope.rope_type} needs {ORIGINAL}")
    return rope.original_max_position_embeddings


def _ramp(rope: Rope, head_width: int) -> Tensor:
    """YaRN's: 0 at the last pair that is kept, 1 at the first that is divided in full; not clamped."""

    def pair(turns: float) -> float:
        """The number, a real one, of the pair that turns so often in the original context."""
        wavelength = _original(rope) / (turns * 2 * math.pi)
        return head_width * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The bounds and the 0.001 are those of the authors' code, which transformers has as well.
    low, high = max(low, 0), min(high, head_width - 1)
    pairs = torch.arange(head_width // 2, dtype=torch.float64)
    return (pairs - low) / (high - low if high != low else 0.001)


def attention_factor(rope: Rope) -> float:
    """What cos and sin are multiplied by, so that scores are by its square: 1, or YaRN's temperature,
    sqrt(1 / t) = 0.1 ln(factor) + 1 (Peng et al. 2023, section 3.3)."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale is None or rope.mscale_all_dim is None:
        return _temperature(rope.factor, 1.0)
    return _temperature(rope.factor, rope.mscale) / _temperature(rope.factor, rope.mscale_all_dim)


def _temperature(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1


@lru_cache(maxsize=16)
def _tables(rope: Rope, head_width: int, length: int, device: torch.device) -> Rotation:
    # Made outside inference mode: a table first needed while decoding must also serve training.
    with torch.inference_mode(False), torch.no_grad():
        positions = torch.arange(length, dtype=torch.float64)
        angles = torch.outer(positions, frequencies(rope, head_width))
        scale = attention_factor(rope)
        cos, sin = (scale * angles.cos()).float(), (scale * angles.sin()).float()
        return Rotation(torch.cat((cos, cos), dim=-1).to(device), sin.to(device))


def rotation(rope: Rope, head_width: int, start: int, end: int, device: torch.device) -> Rotation:
    """The tables of positions start to end; kept between calls, and grown by doubling."""
    length = max(64, 1 << (end - 1).bit_length())
    return _tables(rope, head_width, length, device).at(start, end)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]
    half = sin.shape[-1]
    exact = x.float()
    out = exact * cos
    out[..., :half].addcmul_(exact[..., half:], sin, value=-sign)
    out[..., half:].addcmul_(exact[..., :half], sin, value=sign)
    return out.to(x.dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate heads by their positions: x (batch, length, heads, head_width) -> the same shape and dtype."""
    return _Rotate.apply(x, *rotation)


def rotate_reference(x: Tensor, rotation: Rotation) -> Tensor:
    """`rotate` in the textbook form x cos + rotate_half(x) sin, differentiated by autograd."""
    cos, sin = rotation.cos[:, None], torch.cat((rotation.sin, rotation.sin), dim=-1)[:, None]
    first, second = x.chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1).float() * sin).to(x.dtype)
