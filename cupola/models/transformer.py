"""The Transformer's mixer: causal multi-head attention with grouped queries, rotary positions, QK-norm.

A tensor-parallel shard is this code with fewer heads: query, key and value have weights of their own, and
shapes are read from what the linear maps return, never from the settings.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cupola.models import attention
from cupola.models.layer import Carried, Inputs, State
from cupola.models.layers import Linear, RMSNorm
from cupola.models.rope import Rotation, rotate, rotation
from cupola.recipe.model import Model


class KeyValues(State):
    """The keys and values that a layer has seen: (batch, key_value_heads, columns, head_width) each.

    Memory for all columns is taken at the first write, in the shape (a shard's heads) and dtype
    (autocast's) of what is written.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def write(self, key: Tensor, value: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Add (batch, new, key_value_heads, head_width) from column `start` on.

        Returns:
            All keys and values up to there: (batch, key_value_heads, start + new, head_width).
        """
        batch, new, heads, width = key.shape
        shape = (batch, heads, self.columns, width)
        if self.keys is None or self.values is None:
            self.keys = value.new_empty(shape)
            self.values = value.new_empty(shape)
        end = start + new
        self.keys[:, :, start:end] = key.transpose(1, 2)
        self.values[:, :, start:end] = value.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]


class RecentKeyValues(State):
    """`KeyValues` of a sliding window: only the last window - 1 columns are kept, so that memory does not
    grow; a token then costs a copy of them."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def write(self, key: Tensor, value: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """As `KeyValues.write`, but what is returned begins with the first column that some new one sees."""
        keys, values = key.to(value.dtype).transpose(1, 2), value.transpose(1, 2)
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        kept = min(keys.shape[2], self.window - 1)
        first = keys.shape[2] - kept
        self.keys, self.values = keys[:, :, first:].clone(), values[:, :, first:].clone()
        return keys, values


class Prepared(NamedTuple):
    """What all attention layers of a forward pass share."""

    rotation: Rotation | None
    whole: attention.Plan | None
    """For a pass that begins at column 0."""
    start: int
    visible: Tensor | None
    """For a pass that continues a cache: (batch or 1, new, columns that the cache gives) bool, None:
    everything is visible."""


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_width)) v over the tokens of the same document up to the query's own.

    Args:
        window: of so many tokens only, the query's own included; None: of all.
    """

    def __init__(self, model: Model, layer: int, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        sizes = model.sizes()
        self.head_width = sizes.head_width
        queries, keys = sizes.heads * sizes.head_width, sizes.key_value_heads * sizes.head_width
        self.query = Linear(model.width, queries, model.attention_bias)
        self.key = Linear(model.width, keys, model.attention_bias)
        self.value = Linear(model.width, keys, model.attention_bias)
        self.query_norm = RMSNorm(sizes.head_width, model.norm_epsilon) if model.qk_norm else None
        self.key_norm = RMSNorm(sizes.head_width, model.norm_epsilon) if model.qk_norm else None
        # The kernels scale by head_width^-1/2; another scale goes into the queries beforehand.
        own = model.multipliers().attention
        self.rescale = None if own is None else own * sizes.head_width**0.5
        self.output = Linear(queries, model.width, model.output_bias)
        self.rope = model.rope if model.positions == "rope" else None
        self.plan_key: Hashable = ("attention", self.rope, self.head_width, window)

    def plan(self, inputs: Inputs) -> Prepared:
        """Rotary tables, and what is visible to whom. Positions are columns: rotary embedding depends on
        distances only, so neither documents nor padding need restart them."""
        start, end = inputs.start, inputs.start + inputs.length
        turned = None
        if self.rope is not None:
            turned = rotation(self.rope, self.head_width, start, end, inputs.device)
        if start == 0:
            whole = attention.plan(inputs.batch, inputs.length, inputs.documents, inputs.device, self.window)
            return Prepared(turned, whole, start, None)
        visible = None
        oldest = 0 if self.window is None else max(0, start - self.window + 1)
        columns = torch.arange(oldest, end, device=inputs.device)
        if inputs.length > 1:
            own = torch.arange(start, end, device=inputs.device)[:, None]
            visible = (columns <= own)[None]
            if self.window is not None:
                visible = visible & (columns > own - self.window)
        if inputs.first is not None:
            begun = (columns >= inputs.first[:, None])[:, None]
            visible = begun if visible is None else visible & begun
        return Prepared(turned, None, start, visible)

    def state(self, columns: int) -> KeyValues | RecentKeyValues:
        """An empty cache of so many columns, or of the window."""
        return KeyValues(columns) if self.window is None else RecentKeyValues(self.window)

    def forward(
        self, x: Tensor, plan: Prepared, state: KeyValues | RecentKeyValues | None, carried: Carried
    ) -> tuple[Tensor, Carried]:
        """x (batch, length, width) -> the same."""
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, -1, self.head_width)
        k = self.key(x).view(batch, length, -1, self.head_width)
        v = self.value(x).view(batch, length, -1, self.head_width)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if plan.rotation is not None:
            q, k = rotate(q, plan.rotation), rotate(k, plan.rotation)
        if self.rescale is not None:
            q = q * self.rescale
        if state is not None:
            keys, values = state.write(k, v, plan.start)
        if plan.whole is not None:
            mixed = attention.attend(q, k, v, plan.whole)
        else:
            mixed = attention.attend_cached(q, keys, values, plan.visible)
        return self.output(mixed.reshape(batch, length, -1)), carried
