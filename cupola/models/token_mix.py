"""What RWKV-7 computes channel by channel around its matrices and its recurrence: see `rwkv7`.

In terms of work this is nothing, in terms of memory traffic it is as much as the recurrence: differentiated
by autograd a layer would read and write more than a hundred tensors of the batch's size. So on a CPU the
functions here have their own backward passes, which go through the batch in tiles that stay in the cache.
bf16 is computed in fp32 and rounded once, but for `mix`, which keeps its differences in bf16.

Forward and backward of 2048 tokens, width 256 (squared_relu: 896), one thread, milliseconds, in brackets
autograd through the plain formulas:

    mix, six shares   6.8 (12.5)       gated_output   6.6 (8.5)
    keys              5.8 (11.3)       squared_relu   3.2 (6)

Elsewhere, and in a compiled block, the plain formulas (`plain_...`) are what is fused.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.models.segments import Segments

SHORTEST = 1e-12
"""A key shorter than this is divided by this instead of its length."""
TILE = 2**17
"""Numbers of one tensor's part of a tile: half a megabyte in fp32."""


def _by_tiles(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def exact(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def mix(x: Tensor, last: Tensor | None, segments: Segments, shares: list[Tensor]) -> tuple[Tensor, ...]:
    """The token shift: x mixed with the token before, x + (before - x) * share, for each of `shares`.

    Args:
        x: (batch, length, width).
        last: (batch, 1, width): the token before the first, to which no gradient flows; None: zeros.
        segments: of these rows; a document's first token sees zeros.
        shares: (width,) each: how much of each channel comes from the token before.

    Returns:
        For each of them (batch, length, width), of x's dtype.
    """
    reaches = segments.reaches(1)
    if reaches is not None and last is not None:  # what came before belongs to the first document
        reaches = torch.cat([torch.ones_like(reaches[:, :1]), reaches[:, 1:]], dim=1)
    return (_Mix.apply if _by_tiles(x) else plain_mix)(x, last, reaches, *shares)


def plain_mix(x: Tensor, last: Tensor | None, reaches: Tensor | None, *shares: Tensor) -> tuple[Tensor, ...]:
    """`mix` as the formula; reaches: (batch, length, 1) bool or None, the tokens that see the one before."""
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)
    before = torch.cat([first, x[:, :-1]], dim=1)
    difference = (before if reaches is None else before * reaches) - x
    return tuple(torch.addcmul(x, difference, share.to(x.dtype)) for share in shares)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, last: Tensor | None, reaches: Tensor | None, *shares: Tensor
    ) -> tuple[Tensor, ...]:
        first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)
        difference = torch.cat([first, x[:, :-1]], dim=1)
        if reaches is not None:
            difference.mul_(reaches)
        difference.sub_(x)
        ctx.save_for_backward(difference, reaches, *shares)
        return tuple(torch.addcmul(x, difference, share.to(x.dtype)) for share in shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        difference, reaches, *shares = ctx.saved_tensors
        weights = [exact(share) for share in shares]
        d_x = torch.empty_like(difference)
        d_before = torch.empty_like(difference)
        d_shares = [torch.zeros_like(weight) for weight in weights]
        for apart, into, into_before, *parts in _tiles(difference, d_x, d_before, *gradients):
            apart = exact(apart)
            total, before = torch.zeros_like(apart), torch.zeros_like(apart)
            for part, weight, d_share in zip(parts, weights, d_shares, strict=True):
                part = exact(part)
                total += part
                before.addcmul_(part, weight)
                d_share += (part * apart).sum(0)
            into.copy_(total.sub_(before))
            into_before.copy_(before)
        if reaches is not None:
            d_before.mul_(reaches)
        d_x[:, :-1] += d_before[:, 1:]
        return d_x, None, None, *(d.to(share.dtype) for d, share in zip(d_shares, shares, strict=True))


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return _SquaredReLU.apply(x) if _by_tiles(x) else F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


def keys(key: Tensor, rate: Tensor, scale: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the delta rule writes and removes.

    With kk = key * scale, made of length 1 in each head (0 stays 0):

    Args:
        key: (batch, length, heads, head_width).
        rate: the same shape, fp32, in 0 to 1: the in-context learning rate.
        scale, share: (heads * head_width,).

    Returns:
        key * (1 + (rate - 1) * share), -kk and kk * rate, of key's dtype.
    """
    return (_Keys.apply if _by_tiles(key) else plain_keys)(key, rate, scale, share)


def plain_keys(key: Tensor, rate: Tensor, scale: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`keys` as the formula."""
    scale, share = scale.view(key.shape[2:]), share.view(key.shape[2:])
    direction = F.normalize(exact(key) * scale, dim=-1, eps=SHORTEST)
    written = exact(key) * (1 + (rate - 1) * share)
    return written.to(key.dtype), (-direction).to(key.dtype), (direction * rate).to(key.dtype)


class _Keys(torch.autograd.Function):
    """Gradients, with n = kk / |kk|, d_n = rate * d_b - d_a: d_kk = (d_n - n (n . d_n)) / |kk|."""

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, rate: Tensor, scale: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_head = key.shape[2:]
        scale, share = exact(scale).view(by_head), exact(share).view(by_head)
        written, removed, added = (torch.empty_like(key) for _ in range(3))
        for k, r, into_written, into_removed, into_added in _tiles(key, rate, written, removed, added):
            k = exact(k)
            direction = k * scale
            direction.div_(_length(direction))
            into_removed.copy_(-direction)
            into_added.copy_(direction.mul_(r))
            into_written.copy_((r - 1).mul_(share).add_(1).mul_(k))
        ctx.save_for_backward(key, rate, scale, share)
        return written, removed, added

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_written: Tensor, d_removed: Tensor, d_added: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key, rate, scale, share = ctx.saved_tensors
        d_key, d_rate = torch.empty_like(key), torch.empty_like(rate)
        d_scale, d_share = torch.zeros_like(scale), torch.zeros_like(share)
        tensors = (key, rate, d_written, d_removed, d_added, d_key, d_rate)
        for k, r, d_w, d_a, d_b, into_key, into_rate in _tiles(*tensors):
            k, d_w, d_a, d_b = exact(k), exact(d_w), exact(d_a), exact(d_b)
            direction = k * scale
            length = _length(direction)
            direction.div_(length)
            d_direction = (d_b * r).sub_(d_a)
            along = (d_direction * direction).sum(-1, keepdim=True)
            along.masked_fill_(length == SHORTEST, 0)
            d_kk = d_direction.addcmul_(direction, along, value=-1).div_(length)
            d_scale += (d_kk * k).sum(0)
            less = r - 1
            by_key = d_w * k
            d_share += (by_key * less).sum(0)
            torch.addcmul(by_key.mul_(share), d_b, direction, out=into_rate)
            into_key.copy_(less.mul_(share).add_(1).mul_(d_w).addcmul_(d_kk, scale))
        return d_key, d_rate, d_scale.flatten(), d_share.flatten()


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SHORTEST)


def gated_output(
    y: Tensor,
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    bonus: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
) -> Tensor:
    """gate * (y normalised in each head * weight + bias + value * sum(receptance * key * bonus)).

    Args:
        y, receptance, key, value, gate: (batch, length, heads, head_width).
        bonus, weight, bias: (heads * head_width,).

    Returns:
        The shape and dtype of `gate`.
    """
    function = _GatedOutput.apply if _by_tiles(y) else plain_output
    return function(y, receptance, key, value, gate, bonus, weight, bias, epsilon)


def plain_output(
    y: Tensor,
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    bonus: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
) -> Tensor:
    """`gated_output` as the formula."""
    rows, heads = exact(y).flatten(2).flatten(0, 1), y.shape[2]
    normal = F.group_norm(rows, heads, exact(weight), exact(bias), epsilon).view(y.shape)
    own = (exact(receptance) * exact(key) * bonus.view(y.shape[2:])).sum(-1, keepdim=True)
    return ((normal + own * exact(value)) * gate).to(gate.dtype)


class _GatedOutput(torch.autograd.Function):
    """Gradients, with n = (y - mean) / deviation, s = sum(r k bonus), d that of n weight + bias + s value:
    d_y = (d weight - mean(d weight) - n mean(d weight n)) / deviation, d_s = sum(d value)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, bonus, weight, bias, epsilon = inputs
        by_head = tensors[0].shape[2:]
        vectors = [exact(x).view(by_head) for x in (bonus, weight, bias)]
        out = torch.empty_like(tensors[4])
        for *parts, into in _tiles(*tensors, out):
            y, r, k, v, gate = (exact(x) for x in parts)
            normal, _ = _normalise(y, epsilon)
            own = (r * k).mul_(vectors[0]).sum(-1, keepdim=True)
            o = normal.mul_(vectors[1]).add_(vectors[2]).addcmul_(own, v)
            into.copy_(o.mul_(gate))
        ctx.save_for_backward(*tensors, *vectors)
        ctx.epsilon = epsilon
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, bonus, weight, bias = ctx.saved_tensors
        found = [torch.empty_like(x) for x in tensors]
        d_bonus, d_weight, d_bias = (torch.zeros_like(x) for x in (bonus, weight, bias))
        for parts in _tiles(gradient, *tensors, *found):
            g, y, r, k, v, gate = (exact(x) for x in parts[:6])
            into_y, into_r, into_k, into_v, into_gate = parts[6:]
            normal, deviation = _normalise(y, ctx.epsilon)
            by_bonus = r * k
            own = (by_bonus * bonus).sum(-1, keepdim=True)
            into_gate.copy_((normal * weight).add_(bias).addcmul_(own, v).mul_(g))
            d = g * gate
            d_bias += d.sum(0)
            d_weight += (d * normal).sum(0)
            d_own = (d * v).sum(-1, keepdim=True)
            into_v.copy_(d * own)
            d_bonus += by_bonus.mul_(d_own).sum(0)
            d_own = d_own * bonus
            into_r.copy_(d_own * k)
            into_k.copy_(d_own.mul_(r))
            d.mul_(weight)
            along = (d * normal).mean(-1, keepdim=True)
            d.sub_(d.mean(-1, keepdim=True)).addcmul_(normal, along, value=-1)
            into_y.copy_(d.div_(deviation))
        return *found, d_bonus.flatten(), d_weight.flatten(), d_bias.flatten(), None


def _normalise(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x less its mean over its deviation, along the last axis, and that deviation."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    deviation = deviation.square_().div_(x.shape[-1]).add_(epsilon).sqrt_()
    return centred.div_(deviation), deviation


def _tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors (batch, length, ...) cut alike into parts (tokens, ...), views of them."""
    tokens = max(1, TILE // tensors[0][0, 0].numel())
    for row in range(len(tensors[0])):
        yield from zip(*(x[row].split(tokens) for x in tensors), strict=True)
