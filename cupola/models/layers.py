"""Linear maps, norms and feed-forward layers.

`Linear` is torch's, except that in fp32 on CPU its forward pass and the gradient of its input go to
oneDNN, which reaches 102-109 GFLOP/s where torch's default (MKL) reaches 79-102 (2048 tokens, widths 384
to 1024, one core of an AMD EPYC); for the weights' gradient the two are equal. It leans on an operator
that torch keeps for its compiler, so it is asked for, and torch's own path taken, where it is missing.

Under autocast a norm computes in fp32 and returns the compute dtype, so that the two or three linear
maps that read it don't each make their own copy. `RMSNorm` has its own backward: on CPU torch composes
RMSNorm of small operations, whose backward is six times slower (8 x 256 x 384: 6.3 ms against 1.0).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cupola.models import probe
from cupola.models.layer import Carried, Pointwise
from cupola.recipe.model import Model


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which linear maps run on x: autocast's where it is on, x's otherwise."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


ONEDNN_ROWS = 64
"""With fewer rows (decoding) torch's own path is as fast."""


def _onednn_linear() -> Any:
    available = torch.backends.mkldnn.is_available()
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if available else None


_ONEDNN_LINEAR = _onednn_linear()


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _ONEDNN_LINEAR(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, weight.shape[0])
        d_x = None
        if needs_x:
            d_x = _ONEDNN_LINEAR(rows, weight.t(), None, "none", [], "")
            d_x = d_x.view(*gradient.shape[:-1], weight.shape[1])
        d_weight = rows.t() @ x.reshape(-1, weight.shape[1]) if needs_weight else None
        return d_x, d_weight, rows.sum(0) if needs_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., inputs), weight (outputs, inputs), bias (outputs,) -> (..., outputs)."""
    plain_fp32 = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
    )
    if (
        plain_fp32
        and _ONEDNN_LINEAR is not None
        and x.numel() >= ONEDNN_ROWS * weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return _OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, root, weight = ctx.saved_tensors
        width = x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            exact, g, scale = x.float(), gradient.float(), weight.float()
            products = (exact * g).view(-1, width)
            d_weight = None
            if ctx.needs_input_grad[1]:
                d_weight = (root.view(1, -1) @ products).view(-1).to(weight.dtype)
            along = (products @ scale[:, None]).view(root.shape) * (root * root / width)
            dx = (g * scale).addcmul_(exact, along, value=-1).mul_(root)
        return dx.to(x.dtype), d_weight, None, None


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


class Gated(Pointwise, nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        hidden, bias = model.sizes().feedforward, model.feedforward_bias
        self.gate = Linear(model.width, hidden, bias)
        self.up = Linear(model.width, hidden, bias)
        self.down = Linear(hidden, model.width, bias)

    def forward(self, x: Tensor, plan: None, state: None, carried: Carried) -> tuple[Tensor, Carried]:
        """x (batch, length, width) -> the same."""
        hidden = F.silu(self.gate(x)) * self.up(x)
        probe.show("hidden", hidden)
        return self.down(hidden), carried


class Plain(Pointwise, nn.Module):
    """down(gelu(up(x))), with GELU exact or in its tanh form (Hendrycks and Gimpel 2016)."""

    def __init__(self, model: Model, layer: int) -> None:
        super().__init__()
        hidden, bias = model.sizes().feedforward, model.feedforward_bias
        self.up = Linear(model.width, hidden, bias)
        self.down = Linear(hidden, model.width, bias)
        self.approximate = "tanh" if model.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor, plan: None, state: None, carried: Carried) -> tuple[Tensor, Carried]:
        """x (batch, length, width) -> the same."""
        hidden = F.gelu(self.up(x), approximate=self.approximate)
        probe.show("hidden", hidden)
        return self.down(hidden), carried
