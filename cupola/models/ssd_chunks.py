"""Mamba-2's scan chunk by chunk, exact in fp32, with its own backward pass.

Inside a chunk y is a product with a lower triangular matrix M_ij = (c_i . b_j) exp(s_i - s_j) dt_j, s being
the running sum of dt a; between chunks only the state is carried. Every exponent is a sum of negative
numbers, so nothing overflows; dt stands in it as its logarithm, so that x is read as it lies.

All products are batched over chunks. A span of chunks is worked off at a time, one head after the other,
so that the triangular matrices stay in the cache; they are computed again in the backward pass. Kept for
it are the inputs and the state that enters each chunk, which is head_width * state_width / CHUNK numbers a
token and head.

`bench/scan.py` prints the times that the constants are read off: microseconds a token, forward and backward,
8 heads of 64, state of 128, one thread, spans of 1024 tokens.

            chunk     32      64     128
    fp32     2048     33      26      26
    fp32     8192     32      27      28
    bf16     2048     24      17      17
    bf16     8192     25      20      18

Written out over the whole row and left to autograd, the same sums take 51 us at 2048 tokens and 315 at 8192.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.models.segments import Chunks

CHUNK = {torch.float32: 64, torch.bfloat16: 128}
"""Tokens of a chunk."""
SPAN = 1024
"""Tokens that are worked off together."""
LOG2_E = math.log2(math.e)
"""Powers are of 2: torch's exp on CPU is MKL's, three times slower, and forty where it underflows."""
LEAST_DT = 1e-20
"""A smaller dt (softplus underflows to 0) counts as this."""


class _Decays(NamedTuple):
    """Factors of all tokens: (batch, chunks, size, heads) unless another shape is said; at least fp32."""

    rising: Tensor
    """(batch, chunks, heads, size, 4): the row times `falling`'s column is s_i - s_j + log dt_j, in powers
    of 2."""
    falling: Tensor
    """(batch, chunks, heads, 4, size)."""
    seen: Tensor
    """exp(s_i): what the token sees of the state that enters its chunk."""
    contributed: Tensor
    """exp(s_last - s_j) dt_j: what it adds to the state that leaves."""
    kept: Tensor
    """(batch, chunks, heads): what is left of the entering state in the leaving one."""
    mask: Tensor
    """(1 or batch, 1 or chunks, size, size): added to the exponents, 0 or -inf."""


@lru_cache(maxsize=16)
def _causal(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((1, 1, size, size), -torch.inf, dtype=dtype, device=device).triu_(1)


def _decays(dt: Tensor, a: Tensor, chunks: Chunks | None) -> _Decays:
    """dt: (batch, chunks, size, heads)."""
    sums = (dt.double() * (a.double() * LOG2_E)).cumsum(dim=2)
    logarithm = dt.double().clamp_min(LEAST_DT).log2_()
    last = sums[:, :, -1:]
    seen, contributed = sums.exp2(), (last - sums).add_(logarithm).exp2_()
    kept = last[:, :, 0].exp2()
    seen, contributed, kept = (t.to(dt.dtype) for t in (seen, contributed, kept))
    mask = _causal(dt.shape[2], dt.dtype, dt.device)
    if chunks is not None:
        seen.mul_(chunks.seen[..., None])
        contributed.mul_(chunks.contributed[..., None])
        kept.mul_(chunks.survives[..., None])
        mask = torch.where(chunks.same, mask, -torch.inf)
    up, up_rest = _halves(sums.transpose(2, 3), dt.dtype)
    down, down_rest = _halves(logarithm.sub_(sums).transpose(2, 3), dt.dtype)
    one = torch.ones_like(up)
    rising = torch.stack([up, one, up_rest, one], dim=4)
    falling = torch.stack([one, down, one, down_rest], dim=3)
    return _Decays(rising, falling, seen, contributed, kept, mask)


def _halves(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fp64 as the sum of two numbers of the dtype: running sums reach hundreds, and differences count."""
    high = x.to(dtype)
    return high, (x - high).to(dtype)


class _Span:
    """Some chunks as one list (several whole rows, or consecutive chunks of one row), and their products.

    Tokens are (chunks, size, heads, head_width) and (chunks, size, groups, state_width), states
    (chunks, heads, head_width * state_width). The heads of a group share b and c, so that they are rows of
    one matrix wherever the sum does not run over tokens with a decay between.
    """

    def __init__(
        self, where: tuple[slice, slice], inputs: tuple[Tensor, Tensor, Tensor], decays: _Decays
    ) -> None:
        self.where = where
        self.x, self.b, self.c = (self.cut(t) for t in inputs)
        self.seen, self.contributed = (self.cut(t)[..., None].to(self.x.dtype) for t in decays[2:4])
        self.kept = decays.kept[where]
        self.rising, self.falling = self.cut(decays.rising), self.cut(decays.falling)
        self.mask = decays.mask[0] if decays.mask.shape[:2] == (1, 1) else self.cut(decays.mask)
        self.heads_of_group = self.x.shape[2] // self.b.shape[2]

    def cut(self, t: Tensor) -> Tensor:
        """(batch, chunks, ...) -> (chunks of the span, ...)."""
        return t[self.where].flatten(0, 1)

    def decay(self, head: int) -> Tensor:
        """exp(s_i - s_j) dt_j where i sees j, else 0: (chunks, size, size)."""
        exponents = torch.baddbmm(self.mask, self.rising[:, head], self.falling[:, head])
        return exponents.exp2_().to(self.x.dtype)

    def head(self, tokens: Tensor, head: int) -> Tensor:
        """(chunks, size, head_width). In bf16 a copy: oneDNN is half as fast on rows that don't touch."""
        one = tokens[:, :, head]
        return one.contiguous() if one.dtype == torch.bfloat16 else one

    def products(self) -> list[Tensor]:
        """c_i . b_j for each group: (chunks, size, size)."""
        return [torch.bmm(c, b.mT) for c, b in zip(self.c.unbind(2), self.b.unbind(2), strict=True)]

    def wide(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """For each group: (chunks, size, heads of the group * head_width)."""
        return tokens.view(*tokens.shape[:2], self.b.shape[2], -1).unbind(2)

    def stacked(self, states: Tensor) -> tuple[Tensor, ...]:
        """For each group: (chunks, heads of the group * head_width, state_width)."""
        return states.view(states.shape[0], self.b.shape[2], -1, self.b.shape[3]).unbind(1)

    def to_states(self, tokens: Tensor, sides: Tensor) -> Tensor:
        """sum_t tokens_t sides_t^T for each chunk."""
        parts = [torch.bmm(t.mT, s) for t, s in zip(self.wide(tokens), sides.unbind(2), strict=True)]
        return _join(parts, 1).view(tokens.shape[0], tokens.shape[2], -1)

    def from_states(self, states: Tensor, sides: Tensor) -> Tensor:
        """state sides_t for each token."""
        parts = [torch.bmm(s, t.mT) for s, t in zip(sides.unbind(2), self.stacked(states), strict=True)]
        return _join(parts, 2).view(self.x.shape)

    def along_states(self, tokens: Tensor, states: Tensor) -> Tensor:
        """state^T tokens_t for each token, summed over the heads of a group."""
        parts = [torch.bmm(t, s) for t, s in zip(self.wide(tokens), self.stacked(states), strict=True)]
        return _join(parts, 2)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Over the last axis, summed in fp32 at least."""
    return (left * right).sum(dim=-1, dtype=torch.promote_types(left.dtype, torch.float32))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0].unsqueeze(dim) if len(parts) == 1 else torch.stack(parts, dim)


def _carry(met: Tensor, added: Tensor, kept: Tensor, carried: Tensor, reverse: bool = False) -> None:
    """s_{k+1} = kept_k s_k + added_k over chunks (in reverse: s_{k-1}), in place.

    Args:
        met: (rows, chunks, heads, n) fp32, filled with what each chunk meets.
        added: (rows * chunks, heads, n) in any dtype.
        kept: (rows, chunks, heads) fp32.
        carried: (rows, heads, n) fp32: what the first chunk meets; replaced by what the last leaves.
    """
    added, order = added.view(met.shape), range(met.shape[1])
    for k in reversed(order) if reverse else order:
        met[:, k] = carried
        torch.addcmul(added[:, k].to(carried.dtype), kept[:, k, :, None], carried, out=carried)


class Scan(torch.autograd.Function):
    """Gradients, with g that of y, R_k that of the state which leaves chunk k, and Q = dM * M:

        dM_ij = g_i . x_j,    dx_j = sum_i M_ij g_i + w_j R b_j,    w = `contributed`, e = `seen`
        dc_i = sum_j (dM decay)_ij b_j + S^T e_i g_i,    db_j = sum_i (dM decay)_ij c_i + R^T w_j x_j
        R_{k-1} = kept_k R_k + sum_i e_i g_i c_i^T

    The gradient of the running sum's increment at t sums all that crosses t: Q_ij of j < t <= i,
    e_i g_i . S c_i of i >= t, w_j x_j . R b_j of j < t, and kept <R, S>.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        state: Tensor | None,
        skip: Tensor | None,
        chunks: Chunks | None,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        xs, dts, bs, cs = (t.reshape(t.shape[0], -1, size, *t.shape[2:]) for t in (x, dt, b, c))
        with torch.autocast(x.device.type, enabled=False):
            y, states, last = _forward(xs, dts, bs, cs, a, state, skip, chunks)
        ctx.save_for_backward(xs, dts, bs, cs, a, states, skip)
        ctx.chunks, ctx.from_state = chunks, state is not None
        return y.view(x.shape), last.view(*last.shape[:2], x.shape[3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, b, c, a, states, skip = ctx.saved_tensors
        with torch.autocast(d_y.device.type, enabled=False):
            found = _backward(x, dt, b, c, a, states, skip, ctx.chunks, d_y.reshape(x.shape), d_last)
        d_x, d_dt, d_a, d_b, d_c, d_state, d_skip = found
        d_x, d_dt, d_b, d_c = (t.flatten(1, 2) for t in (d_x, d_dt, d_b, d_c))
        optional = d_state.view(d_last.shape) if ctx.from_state else None, None if skip is None else d_skip
        return d_x, d_dt, d_a, d_b, d_c, *optional, None, None


def _spans(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, chunks) of about SPAN tokens: several whole rows, or consecutive chunks of one row."""
    rows, chunks, size = x.shape[:3]
    most = max(1, SPAN // size)
    if chunks <= most:
        for row in range(0, rows, most // chunks):
            yield slice(row, row + most // chunks), slice(0, chunks)
        return
    for row in range(rows):
        for first in range(0, chunks, most):
            yield slice(row, row + 1), slice(first, min(first + most, chunks))


def _forward(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    a: Tensor,
    state: Tensor | None,
    skip: Tensor | None,
    chunks: Chunks | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y of x's shape; the states that enter the chunks, (rows, chunks, heads, n); the last ones."""
    rows, count, _, heads, width = x.shape
    decays, y = _decays(dt, a, chunks), torch.empty_like(x)
    states = decays.kept.new_empty(rows, count, heads, width * b.shape[4])
    last = torch.zeros_like(states[:, 0]) if state is None else state.flatten(2).clone()
    for where in _spans(x):
        span = _Span(where, (x, b, c), decays)
        met = states[where]
        _carry(met, span.to_states(span.x * span.contributed, span.b), span.kept, last[where[0]])
        carried = span.from_states(met.flatten(0, 1).to(x.dtype), span.c)
        out, products = span.cut(y), span.products()
        for head in range(heads):
            matrix = span.decay(head).mul_(products[head // span.heads_of_group])
            if skip is not None:
                _diagonal(matrix).add_(skip[head])
            inside = torch.bmm(matrix, span.head(span.x, head))
            torch.addcmul(inside, carried[:, :, head], span.seen[:, :, head], out=out[:, :, head])
    return y, states, last


def _backward(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    a: Tensor,
    states: Tensor,
    skip: Tensor | None,
    chunks: Chunks | None,
    d_y: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, a, b, c, the state before the first token, and skip."""
    decays = _decays(dt, a, chunks)
    d_x, d_b, d_c = (torch.empty_like(t) for t in (x, b, c))
    d_state, d_skip = d_last.flatten(2).clone(), d_last.new_zeros(x.shape[3])
    d_sums, d_logarithm = torch.empty_like(dt), torch.empty_like(dt)
    for where in reversed(list(_spans(x))):
        span, met = _Span(where, (x, b, c), decays), states[where]
        g, left = span.cut(d_y), torch.empty_like(met)
        seen, weighted = g * span.seen, span.x * span.contributed
        _carry(left, span.to_states(seen, span.c), span.kept, d_state[where[0]], reverse=True)
        crossing = (span.kept * _dot(met, left)).flatten(0, 1)[:, None]
        met, left = (t.flatten(0, 1).to(x.dtype) for t in (met, left))
        read, from_left = _dot(seen, span.from_states(met, span.c)), span.from_states(left, span.b)
        written = _dot(weighted, from_left)
        inside = _backward_inside(span, g, from_left, skip, span.cut(d_x), d_skip)
        span.cut(d_b).copy_(span.along_states(weighted, left).add_(inside.d_b))
        span.cut(d_c).copy_(span.along_states(seen, met).add_(inside.d_c))
        after = (inside.crossing + read).double().flip(1).cumsum(1).flip(1)
        before = written.double().cumsum(1).sub_(written)
        span.cut(d_sums).copy_(after.add_(before).add_(crossing))
        span.cut(d_logarithm).copy_(inside.written.add_(written))
    d_dt = d_logarithm.div_(dt.clamp_min(LEAST_DT)).add_(d_sums * a)
    d_a = d_sums.mul_(dt).sum(dim=(0, 1, 2))
    return d_x, d_dt, d_a, d_b, d_c, d_state, d_skip


class _Inside(NamedTuple):
    """Gradients that stay inside the chunks; sums of Q are (chunks, size, heads)."""

    d_b: Tensor
    d_c: Tensor
    crossing: Tensor
    """sum_j Q_ij - sum_j Q_ji."""
    written: Tensor
    """sum_j Q_ji."""


def _backward_inside(
    span: _Span, g: Tensor, from_left: Tensor, skip: Tensor | None, d_x: Tensor, d_skip: Tensor
) -> _Inside:
    """The part of the triangular matrices; d_x is filled, d_skip added to."""
    heads, group, products = g.shape[2], span.heads_of_group, span.products()
    d_products = [torch.zeros_like(p) for p in products]
    crossing, written = span.rising.new_empty(2, *span.rising.shape[:3])
    for head in range(heads):
        decay, d_y = span.decay(head), span.head(g, head)
        matrix = decay * products[head // group]
        d_matrix = torch.bmm(d_y, span.head(span.x, head).mT)
        d_products[head // group].addcmul_(d_matrix, decay)
        if skip is not None:
            d_skip[head] += _diagonal(d_matrix).sum(dtype=d_skip.dtype)
        own = _diagonal(d_matrix.mul_(matrix)).clone()
        _diagonal(d_matrix).zero_()  # crosses nothing, and is the largest part where decay is strong
        torch.sum(d_matrix, 1, dtype=written.dtype, out=written[:, head])
        torch.sum(d_matrix, 2, dtype=written.dtype, out=crossing[:, head])
        crossing[:, head] -= written[:, head]
        written[:, head] += own
        if skip is not None:
            _diagonal(matrix).add_(skip[head])
        part = torch.bmm(matrix.mT, d_y)
        torch.addcmul(part, from_left[:, :, head], span.contributed[:, :, head], out=d_x[:, :, head])
    d_b = [torch.bmm(d.mT, c) for d, c in zip(d_products, span.c.unbind(2), strict=True)]
    d_c = [torch.bmm(d, b) for d, b in zip(d_products, span.b.unbind(2), strict=True)]
    return _Inside(_join(d_b, 2), _join(d_c, 2), crossing.mT, written.mT)
