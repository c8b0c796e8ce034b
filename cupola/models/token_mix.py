"""What RWKV-7 computes channel by channel around its matrices and its recurrence: see `rwkv7`.

In terms of work this is nothing, in terms of memory traffic it is more than the matrices: written with
torch's operations a layer would read and write some ninety tensors of the batch's size. The three functions
here have their own backward passes, which go through the batch in tiles that stay in the cache.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models.segments import Segments


def mix(x: Tensor, last: Tensor | None, segments: Segments, shares: list[Tensor]) -> list[Tensor]:
    """The token shift: x mixed with the token before, for each vector of `shares`.

    Args:
        x: (batch, length, width).
        last: (batch, 1, width): the token before the first; None: zeros.
        segments: of these rows; a document's first token sees zeros.
        shares: (width,) each: how much of each channel comes from the token before.

    Returns:
        For each of them (batch, length, width), of x's dtype.
    """
    difference = before(x, last, segments) - x
    return [torch.addcmul(x, difference, share.to(x.dtype)) for share in shares]


def exact(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def before(x: Tensor, last: Tensor | None, segments: Segments) -> Tensor:
    """The token before each, as in `mix`."""
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)
    shifted = torch.cat([first, x[:, :-1]], dim=1)
    reaches = segments.reaches(1)
    if reaches is None:
        return shifted
    if last is not None:  # what came before belongs to the first document
        reaches = torch.cat([torch.ones_like(reaches[:, :1]), reaches[:, 1:]], dim=1)
    return shifted * reaches


def keys(key: Tensor, rate: Tensor, scale: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the delta rule writes and removes.

    With kk = key * scale, normalised in each head (of length at least 1e-12):

    Args:
        key: (batch, length, heads, head_width).
        rate: the same shape, fp32, in 0 to 1: the in-context learning rate.
        scale, share: (heads * head_width,).

    Returns:
        key * (1 + (rate - 1) * share), -kk and kk * rate, of key's dtype.
    """
    scale, share = scale.view(key.shape[2:]), share.view(key.shape[2:])
    direction = F.normalize(exact(key) * scale, dim=-1)
    written = exact(key) * (1 + (rate - 1) * share)
    return written.to(key.dtype), (-direction).to(key.dtype), (direction * rate).to(key.dtype)


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
        y, receptance, key, value: (batch, length, heads, head_width).
        gate: (batch, length, heads * head_width).
        bonus, weight, bias: (heads * head_width,).

    Returns:
        The shape and dtype of `gate`.
    """
    batch, length, heads, width = y.shape
    normalised = F.group_norm(exact(y).flatten(2).flatten(0, 1), heads, exact(weight), exact(bias), epsilon)
    own = (exact(receptance) * exact(key) * bonus.view(heads, width)).sum(-1, keepdim=True) * exact(value)
    return ((normalised.view(batch, length, -1) + own.flatten(2)) * gate).to(gate.dtype)
