"""Matrix products by groups of rows: the pairs (token, expert) of a mixture of experts, sorted by expert.

Guarantees: shapes don't depend on the loads, so on a GPU nothing waits for the host; sums over a token's
experts, forward and backward, are taken in a fixed order (a plain index's backward pass adds in the order
of the hardware), so that the same inputs give the same bits.

`grouped_linear` is torch's grouped product where there is one: on a GPU one kernel for all groups (in bf16,
Ampere or later; it has not run on one yet), on CPU a loop inside torch. It takes rows of whole 16 bytes, so
widths that are no multiple of 8 in bf16 (of 4 in fp32) are padded with zeros, which costs copies of rows and
weights; choose a multiple. `looped_linear` is the same as a loop here: the reference, and the fallback.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cupola.models.layers import compute_dtype

_GROUPED_MM: Any = getattr(F, "grouped_mm", None)
ROW_BYTES = 16
"""torch's grouped product takes rows of a whole number of these."""


class Groups(NamedTuple):
    """The order in which pairs (token, expert) stand when they are sorted by expert."""

    order: Tensor
    """(pairs,) int64: the pair, numbered token by token, that stands at each place."""
    places: Tensor
    """(pairs,) int64: its inverse, where each pair stands."""
    ends: Tensor
    """(experts,) int32: where the rows of each expert end."""
    active: int
    """Pairs of a token."""

    def loads(self) -> Tensor:
        """(experts,) int64: how many tokens each expert got."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)).long()


def groups_of(chosen: Tensor, count: int) -> Groups:
    """Sort the pairs; chosen (tokens, active) int64, numbers below `count`."""
    experts, order = chosen.flatten().sort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    numbers = torch.arange(count, device=order.device)
    ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)
    return Groups(order, places, ends, chosen.shape[-1])


def _copy_out(tokens: Tensor, groups: Groups) -> Tensor:
    return tokens.index_select(0, groups.order // groups.active)


def _add_up(rows: Tensor, groups: Groups) -> Tensor:
    # Sums without a copy of the rows, in fp32: on CPU 3 to 20 times as fast as an index and a sum.
    return F.embedding_bag(groups.places.view(-1, groups.active), rows, mode="sum")


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return _copy_out(tokens, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _add_up(gradient, ctx.groups), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return _add_up(rows, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _copy_out(gradient, ctx.groups), None


def dispatch(tokens: Tensor, groups: Groups) -> Tensor:
    """(tokens, width) -> (pairs, width): each token's row once for each of its experts, sorted by expert."""
    return _Dispatch.apply(tokens, groups)


def combine(rows: Tensor, groups: Groups) -> Tensor:
    """(pairs, width) -> (tokens, width): the sum of each token's rows; the transpose of `dispatch`."""
    return _Combine.apply(rows, groups)


class _GroupedLinear(torch.autograd.Function):
    """torch's own backward pass refuses a gradient that is not contiguous."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, ends)
        return _GROUPED_MM(rows, weight.mT, offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight, ends = ctx.saved_tensors
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        d_rows = _GROUPED_MM(gradient, weight, offs=ends) if needs_rows else None
        d_weight = _GROUPED_MM(gradient.t(), rows, offs=ends) if needs_weight else None
        return d_rows, d_weight, None


def grouped_linear(rows: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """rows (pairs, inputs), weight (experts, outputs, inputs) -> (pairs, outputs): each row by its expert's.

    Under autocast in its dtype.
    """
    dtype = compute_dtype(rows)
    rows, weight = rows.to(dtype), weight.to(dtype)
    if _GROUPED_MM is None or dtype == torch.float64:  # torch's has no fp64
        return looped_linear(rows, weight, groups)
    outputs, inputs = weight.shape[1:]
    step = ROW_BYTES // rows.element_size()
    more_inputs, more_outputs = -inputs % step, -outputs % step
    if more_inputs:
        rows = F.pad(rows, (0, more_inputs))
    if more_inputs or more_outputs:
        weight = F.pad(weight, (0, more_inputs, 0, more_outputs))
    return _GroupedLinear.apply(rows, weight, groups.ends)[:, :outputs]


def looped_linear(rows: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """`grouped_linear` expert by expert, differentiated by autograd; waits for the device."""
    parts = rows.split(groups.loads().tolist())
    return torch.cat([part @ matrix.mT for part, matrix in zip(parts, weight, strict=True)])
