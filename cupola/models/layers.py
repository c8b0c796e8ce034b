"""Norms and feed-forward layers.

Under autocast a norm computes in fp32 and returns the compute dtype, so that the two or three linear
maps that read it don't each make their own copy. `RMSNorm` has its own backward: on CPU torch composes
RMSNorm of small operations, whose backward is six times slower (8 x 256 x 384: 6.3 ms against 1.0).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cupola.recipe.schema import Model


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which linear maps run on x: autocast's where it is on, x's otherwise."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _RMSNorm(torch.autograd.Function):
    """Gradients, with n = x r and r = (mean(x^2) + epsilon)^-1/2:
    dx = r (g w - n mean(g w n)), dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        exact = x.float()
        root = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        root = root.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, root, weight)
        return (exact * root).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, root, weight = ctx.saved_tensors
        width = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            exact, g, scale = x.float(), gradient.float(), weight.float()
            products = (exact * g).view(-1, width)
            d_weight = (root.view(1, -1) @ products).view(-1)
            along = (products @ scale[:, None]).view(root.shape) * (root * root / width)
            dx = (g * scale).addcmul_(exact, along, value=-1).mul_(root)
        return dx.to(x.dtype), d_weight.to(weight.dtype), None, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019), in fp32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.epsilon, compute_dtype(x))


def rmsnorm_reference(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`RMSNorm` as the formula, differentiated by autograd; x and the result are fp32."""
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + epsilon) * weight


class LayerNorm(nn.LayerNorm):
    """LayerNorm with weight and bias (Ba et al. 2016), in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(compute_dtype(x))


def norm(model: Model) -> nn.Module:
    """The norm of a model's residual stream."""
    if model.norm == "rmsnorm":
        return RMSNorm(model.width, model.norm_epsilon)
    return LayerNorm(model.width, model.norm_epsilon)


class Gated(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        hidden, bias = model.sizes().feedforward, model.feedforward_bias
        self.gate = nn.Linear(model.width, hidden, bias)
        self.up = nn.Linear(model.width, hidden, bias)
        self.down = nn.Linear(hidden, model.width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Plain(nn.Module):
    """down(gelu(up(x))), with GELU exact or in its tanh form (Hendrycks and Gimpel 2016)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        hidden, bias = model.sizes().feedforward, model.feedforward_bias
        self.up = nn.Linear(model.width, hidden, bias)
        self.down = nn.Linear(hidden, model.width, bias)
        self.approximate = "tanh" if model.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))
