"""Statistics of what layers show (`probe`): numbers for which training is watched, not trained.

All are fp32 scalars on the tensors' device, computed there without waiting for it, whatever the dtype of what
they read. Call them without gradients and outside autocast.
"""

import math

import torch
from torch import Tensor

from cupola.models.attention import Plan
from cupola.models.grouped import Groups

DEAD = 0.025
"""A unit whose largest value is at most so much of its layer's mean is dead: the threshold that Sokar et al.
2023 ("The dormant neuron phenomenon") take most often."""
SCORES = 2**22
"""Attention scores that are there at a time: 16 MB."""


def root_mean_square(x: Tensor) -> Tensor:
    """Of all numbers of a tensor; NaN of an empty one."""
    return torch.linalg.vector_norm(x, dtype=torch.float32) / math.sqrt(x.numel() or math.nan)


def largest_score(query: Tensor, key: Tensor, plan: Plan) -> Tensor:
    """The largest score that a softmax of attention reads, q k / sqrt(head_width), among visible keys.

    Exact over the rows given, some queries at a time, so that no more than about `SCORES` scores (at least
    those of one query) exist at once. The products are fp32.

    Args:
        query: (batch, length, heads, head_width); a scale of the model's own is in it already.
        key: (batch, length, key_value_heads, head_width).
        plan: of these rows.
    """
    batch, length, heads, width = query.shape
    key_heads = key.shape[2]
    group = heads // key_heads
    keys = key.float().transpose(1, 2).flatten(0, 1).mT  # (batch * key_heads, width, length)
    queries = query.float().mul(width**-0.5).unflatten(2, (key_heads, group))
    size = max(1, SCORES // (batch * heads * length))
    columns = torch.arange(length, device=query.device)
    found = []
    for start in range(0, length, size):
        end = min(start + size, length)
        some = queries[:, start:end].transpose(1, 2).reshape(batch * key_heads, -1, width)
        scores = torch.bmm(some, keys[..., :end]).view(batch, key_heads, end - start, group, end)
        hidden = columns[:end] > columns[start:end, None]
        if plan.begins is not None:
            hidden = hidden | (columns[:end] < plan.begins[:, start:end, None])
        hidden = hidden.view(-1, 1, end - start, 1, end)
        found.append(scores.masked_fill_(hidden, -math.inf).amax())
    return torch.stack(found).amax()


def dead_share(hidden: Tensor) -> Tensor:
    """Share of the units that never fire over some tokens; (..., units).

    A unit's largest magnitude is compared with the mean of all units' (`DEAD`). Sokar et al. compare mean
    magnitudes; with the largest, a unit that fires seldom but strongly does not count as dead, and one that a
    ReLU holds at 0 does.
    """
    largest = hidden.flatten(0, -2).abs().amax(0).float()
    return (largest <= DEAD * largest.mean()).float().mean()


def dead_share_of_experts(hidden: Tensor, groups: Groups) -> Tensor:
    """`dead_share` over all experts that some token met; (pairs, units), sorted by expert."""
    loads = groups.loads()
    places = torch.arange(len(hidden), device=hidden.device)
    expert = torch.searchsorted(groups.ends, places.to(groups.ends.dtype), right=True)
    largest = torch.zeros(len(loads), hidden.shape[1], dtype=torch.float32, device=hidden.device)
    largest.scatter_reduce_(0, expert[:, None].expand(hidden.shape), hidden.abs().float(), "amax")
    met = (loads > 0)[:, None]
    units = met.sum() * hidden.shape[1]
    return ((largest <= DEAD * largest.sum() / units) & met).sum() / units


def decay_extremes(rate: Tensor, a: Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and the largest decay of all channels, each a geometric mean over the tokens.

    Args:
        rate, a: as `probe` describes them.
    """
    mean = rate.flatten(0, -2).mean(0, dtype=torch.float32)
    if a is not None:
        mean = mean.view(-1, *[1] * (a.ndim - 1)) * a
    decay = mean.exp()
    return decay.amin(), decay.amax()
