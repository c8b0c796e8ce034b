"""Completions side by side: flat tensors of tokens, and beside them the number of each token's completion.

Rows of a batch hold several completions, so there is no matrix of completions by tokens. What the losses need
of such a layout is here: sums over each completion, where each ends, and discounted sums to its end.

Throughout, `sequence` (N,) int64 numbers each token's completion from 0 up to `count`; the tokens of one
completion are neighbours and in their order, while the completions may come in any order. Tokens that don't
count (prompts, tools' output, padding, completions that are masked) are not among them.
"""

import torch
from torch import Tensor


def sequence_sums(values: Tensor, sequence: Tensor, count: int) -> Tensor:
    """The sum of each completion's values.

    Args:
        values: (N,) floats or integers.
        sequence: (N,) int64.
        count: how many completions there are.

    Returns:
        (count,), of the values' dtype; 0 for a completion without tokens. On CUDA the order of the additions
        is not fixed, unless deterministic algorithms are asked for.
    """
    return values.new_zeros(count).index_add(0, sequence, values)


def sequence_lengths(sequence: Tensor, count: int) -> Tensor:
    """How many tokens each completion has: (count,) int64."""
    return sequence_sums(torch.ones_like(sequence), sequence, count)


def is_last(sequence: Tensor) -> Tensor:
    """Which tokens are the last of their completion: (N,) bool."""
    following = torch.ones_like(sequence, dtype=torch.bool)
    following[:-1] = sequence[1:] != sequence[:-1]
    return following


@torch.no_grad()
def discounted_sums(values: Tensor, sequence: Tensor, discount: float) -> Tensor:
    """At each token, the sum of the values from there to its completion's end, discounted by distance.

    total_t = values_t + discount * total_{t+1}, solved for all tokens together by doubling: after round k
    each token has summed 2^k of those that follow it. So log2(N) passes over the tokens and no loop over
    positions.

    Args:
        values: (N,) floats.
        sequence: (N,) int64.
        discount: from 0 to 1.

    Returns:
        (N,), of the values' dtype; no gradient.
    """
    total = values.clone()
    weight = torch.full_like(values, discount).masked_fill(is_last(sequence), 0.0)
    reach = 1
    while reach < len(values):
        total[:-reach] += weight[:-reach] * total[reach:]
        weight = torch.cat([weight[:-reach] * weight[reach:], weight.new_zeros(reach)])
        reach *= 2
    return total
