"""Causal depthwise convolution within documents, as the state-space layers have it before their scan.

    y_t = silu(bias + sum_k weight_k x_{t - K + 1 + k}),   0 <= k < K

A tap that reaches into another document sees zero. All rows are convolved as one long row, channels last,
by oneDNN (2048 tokens of 512 channels, fp32, one thread: 0.4 us a token, where `conv1d` over the transposed
rows takes 2.5 and multiply-adds of shifted rows 1.3); then the few tokens whose taps reach too far, K - 1 of
each document, are computed again. The gradient of x is the same backwards; that of the weight is K sums of
products, block by block so that these stay in the cache. Kept for the backward pass is x alone. Forward and
backward take 2.7 us a token (`conv1d` and autograd: 14).
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cupola.models.layer import Inputs
from cupola.models.segments import Segments

BLOCK = 512
"""Tokens whose products with the gradient are summed at a time."""


class Edges(NamedTuple):
    """The tokens whose taps reach beyond their document, over all rows end to end."""

    begin: Tensor
    """(n,) int64: those with fewer than K - 1 tokens of their document before them."""
    before: Tensor
    """(n, K, 1) bool: is the token k before it of the same document?"""
    end: Tensor
    """(m,) int64: those with fewer than K - 1 tokens of their document after them."""
    after: Tensor
    """(m, K, 1) bool: is the token k after it of the same document?"""


def edges(segments: Segments, batch: int, length: int, taps: int, device: torch.device) -> Edges:
    """Where a convolution of (batch, length) tokens is not that of one long row."""
    columns = segments.columns
    if columns is None:
        columns = torch.arange(length, device=device).expand(batch, length)
    before = columns.flatten()[:, None] >= torch.arange(taps, device=device)
    after = torch.stack([F.pad(before[:, k], (0, k))[k:] for k in range(taps)], dim=1)
    begin, end = ((~reached.all(dim=1)).nonzero().flatten() for reached in (before, after))
    return Edges(begin, before[begin][..., None], end, after[end][..., None])


@torch.compiler.disable
def convolve(x: Tensor, weight: Tensor, bias: Tensor, reach: Edges) -> Tensor:
    """The convolution of whole rows, and SiLU. A compiled block calls it as it is.

    Args:
        x: (batch, length, channels).
        weight: (channels, K); the last tap is the token's own.
        bias: (channels,).
        reach: `edges` of these rows and K.

    Returns:
        As x, contiguous.
    """
    return _Convolution.apply(x, weight, bias, reach)


def convolve_reference(x: Tensor, weight: Tensor, bias: Tensor, segments: Segments) -> Tensor:
    """`convolve` as the formula."""
    taps, out = weight.shape[1], bias.expand(x.shape)
    for back in range(min(taps, x.shape[1])):
        shifted, reaches = F.pad(x, (0, 0, back, 0))[:, : x.shape[1]], segments.reaches(back)
        shifted = shifted if reaches is None else shifted.where(reaches, 0)
        out = out + shifted * weight[:, taps - 1 - back]
    return F.silu(out)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reach: Edges) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight, bias)
        ctx.reach = reach
        out = _causal(rows, weight.to(x.dtype), bias.to(x.dtype), reach)
        return F.silu(out, inplace=True).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight, bias = ctx.saved_tensors
        exact = weight.to(rows.dtype)
        before = _causal(rows, exact, bias.to(rows.dtype), ctx.reach)
        g = torch.ops.aten.silu_backward(gradient.reshape(rows.shape), before)
        d_weight, d_bias = _weight_gradient(rows, g, weight, ctx.reach)
        return _anticausal(g, exact, ctx.reach).view(gradient.shape), d_weight, d_bias, None


def _long_row(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(tokens, channels) -> (tokens + K - 1, channels), with K - 1 zeros on both sides."""
    channels, taps = weight.shape
    image = rows.view(1, 1, -1, channels).permute(0, 3, 1, 2)  # (1, channels, 1, tokens), channels last
    out = F.conv2d(image, weight[:, None, None], bias, padding=(0, taps - 1), groups=channels)
    return out.permute(0, 2, 3, 1).reshape(-1, channels)


def _causal(rows: Tensor, weight: Tensor, bias: Tensor, reach: Edges) -> Tensor:
    out = _long_row(rows, weight, bias)[: len(rows)]
    taken = _taken(rows, reach.begin, -1, reach.before)
    return out.index_copy_(0, reach.begin, (taken * weight.flip(1).t()).sum(dim=1).add_(bias))


def _anticausal(g: Tensor, weight: Tensor, reach: Edges) -> Tensor:
    """The gradient of the rows."""
    mirrored = weight.flip(1)
    out = _long_row(g, mirrored, None)[weight.shape[1] - 1 :]
    taken = _taken(g, reach.end, 1, reach.after)
    return out.index_copy_(0, reach.end, (taken * mirrored.t()).sum(dim=1))


def _taken(rows: Tensor, places: Tensor, direction: int, kept: Tensor) -> Tensor:
    """The tokens 0, 1, ... K - 1 after or before the places, zero unless kept: (n, K, channels)."""
    steps = torch.arange(kept.shape[1], device=rows.device)
    found = (places[:, None] + direction * steps).clamp_(0, len(rows) - 1)
    return rows[found].where(kept, 0)


def _weight_gradient(rows: Tensor, g: Tensor, weight: Tensor, reach: Edges) -> tuple[Tensor, Tensor]:
    """Of weight and bias: the sums over one long row, less what crosses documents."""
    taps, dtype = weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    sums = torch.zeros(taps, rows.shape[1], dtype=dtype, device=rows.device)  # by tokens back
    for start in range(0, len(rows), BLOCK):
        for back in range(taps):
            some = g[max(start, back) : start + BLOCK]
            shifted = rows[max(start - back, 0) : max(start + BLOCK - back, 0)][: len(some)]
            sums[back] += (some * shifted).sum(dim=0, dtype=dtype)
    inside = reach.begin[:, None] >= torch.arange(taps, device=rows.device)
    crossing = _taken(rows, reach.begin, -1, inside[..., None] & ~reach.before)
    sums -= (crossing * g[reach.begin][:, None]).sum(dim=0, dtype=dtype)
    return sums.flip(0).t().to(weight.dtype), g.sum(dim=0, dtype=dtype).to(weight.dtype)


class Prepared(NamedTuple):
    """What all layers with a convolution share in a forward pass."""

    segments: Segments
    reach: Edges | None
    """None: the rows continue others, whose history is remembered."""


class Convolving:
    """The protocol's part that layers with a convolution share."""

    taps: int

    @property
    def plan_key(self) -> Hashable:
        """Whatever else they do, convolutions of as many taps share a plan."""
        return ("convolution", self.taps)

    def plan(self, inputs: Inputs) -> Prepared:
        """Where documents begin, and which taps reach beyond them."""
        segments = Segments(inputs.documents)
        if inputs.start > 0:
            return Prepared(segments, None)
        return Prepared(segments, edges(segments, inputs.batch, inputs.length, self.taps, inputs.device))


class Convolution(nn.Module):
    """`convolve` with its weights, and its decoding."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, reach: Edges | None) -> Tensor:
        """Whole rows, each from its beginning; `reach` is their plan's."""
        assert reach is not None
        return convolve(x, self.weight, self.bias, reach)

    def continued(self, x: Tensor, history: Tensor) -> Tensor:
        """Rows that continue others: (batch, new, channels) after the (batch, K - 1, channels) before."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        windows = torch.cat((history, x), dim=1).unfold(1, weight.shape[1], 1)
        return F.silu((windows * weight).sum(dim=-1).add_(bias), inplace=True)


def history(x: Tensor, segments: Segments, taps: int, before: Tensor | None = None) -> Tensor:
    """What decoding remembers of (batch, length, channels) inputs: the last K - 1 of the last document.

    Args:
        before: the history before them; None: zeros.

    Returns:
        (batch, K - 1, channels), zeros where the document is shorter.
    """
    if before is None:
        before = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
    last = torch.cat((before, x[:, max(0, x.shape[1] - taps + 1) :]), dim=1)[:, -(taps - 1) :]
    if segments.columns is None:
        return last
    back = torch.arange(taps - 2, -1, -1, device=x.device)
    return last.where((back <= segments.columns[:, -1:])[..., None], 0)
