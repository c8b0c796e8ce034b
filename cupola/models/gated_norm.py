"""Mamba-2's gated norm: RMSNorm(y silu(gate)) over each group of channels (Dao and Gu 2024), in fp32.

Its own backward pass goes through the batch in blocks of tokens, so that what is made in between stays in
the cache; kept for it are y, the gate and a number for each token and group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 512
"""Tokens of a block."""


@torch.compiler.disable
def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float) -> Tensor:
    """u / sqrt(mean(u^2) + epsilon) * weight with u = y silu(gate), the mean over a group's channels.

    A compiled block calls it as it is.

    Args:
        y, gate: (..., channels) of one dtype.
        weight: (channels,).

    Returns:
        As y.
    """
    return _GatedNorm.apply(y, gate, weight, groups, epsilon)


def gated_norm_reference(y: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float) -> Tensor:
    """`gated_norm` as the formula."""
    u = (y * F.silu(gate)).unflatten(-1, (groups, -1))
    return (u * torch.rsqrt(u.square().mean(dim=-1, keepdim=True) + epsilon)).flatten(-2) * weight


class _GatedNorm(torch.autograd.Function):
    """Gradients, with n = u r and r = (mean(u^2) + epsilon)^-1/2:
    du = r (g w - n mean(g w n)), dw = sum(g n), dy = du silu(gate), dgate = du y silu'(gate)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, groups: int, epsilon: float) -> Tensor:
        rows, gates = (t.reshape(-1, t.shape[-1]) for t in (y, gate))
        exact = torch.promote_types(y.dtype, torch.float32)
        roots = torch.empty(len(rows), groups, 1, dtype=exact, device=y.device)
        out = torch.empty_like(rows)
        for part in _blocks(rows):
            u = F.silu(gates[part].to(exact)).mul_(rows[part]).unflatten(-1, (groups, -1))
            root = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
            roots[part] = root.square_().div_(u.shape[-1]).add_(epsilon).rsqrt_()
            torch.mul(u.mul_(roots[part]).flatten(-2), weight, out=out[part])
        ctx.save_for_backward(rows, gates, weight, roots)
        return out.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        rows, gates, weight, roots = ctx.saved_tensors
        g, groups, exact = gradient.reshape(rows.shape), roots.shape[1], roots.dtype
        d_rows, d_gates = torch.empty_like(rows), torch.empty_like(gates)
        d_weight = torch.zeros_like(weight, dtype=exact)
        for part in _blocks(rows):
            gate, y = gates[part].to(exact), rows[part].to(exact)
            opened = F.silu(gate)
            n = (opened * y).unflatten(-1, (groups, -1)).mul_(roots[part])
            of_n = g[part].to(exact, copy=True)
            d_weight += (of_n * n.flatten(-2)).sum(dim=0)
            du = of_n.mul_(weight).unflatten(-1, (groups, -1))
            along = (du * n).mean(dim=-1, keepdim=True)
            du = du.addcmul_(n, along, value=-1).mul_(roots[part]).flatten(-2)
            torch.mul(du, opened, out=d_rows[part])
            d_gates[part] = torch.ops.aten.silu_backward(du.mul_(y), gate)
        shape = gradient.shape
        return d_rows.view(shape), d_gates.view(shape), d_weight.to(weight.dtype), None, None


def _blocks(rows: Tensor) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]


class GatedNorm(nn.Module):
    """`gated_norm` with its weight."""

    def __init__(self, channels: int, groups: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.groups, self.epsilon = groups, epsilon

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """(..., channels) -> the same."""
        return gated_norm(y, gate, self.weight, self.groups, self.epsilon)
