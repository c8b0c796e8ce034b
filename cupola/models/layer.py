"""What the stack asks of a layer, and what it tells it: the protocol that a new kind of layer keeps.

A layer is a mixer (attention, a state-space layer) or a feed-forward layer; the stack treats them alike.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """What a plan may depend on."""

    batch: int
    length: int
    device: torch.device
    documents: Tensor | None
    """(batch, length) int32, or None: each row is one document. With a cache: padding is document 0."""
    start: int = 0
    """Columns that the cache holds already."""
    first: Tensor | None = None
    """(batch,) int64: the first column of each row that is not padding; None: column 0."""


class Carried(NamedTuple):
    """What layers hand on beside the residual stream; most pass it through as it is. A pipeline hands it
    from stage to stage with the residual stream."""

    values: Tensor | None = None
    """RWKV-7: the first layer's values, (batch, length, width)."""
    balance: Tensor | None = None
    """Mixtures of experts: the weighted loss that evens loads, summed over layers and tokens; a scalar."""
    loads: tuple[Tensor, ...] = ()
    """Mixtures of experts: how many tokens each expert got, (experts,) int64 for each such layer of a block;
    the stack gathers them."""


class State:
    """What a layer remembers while decoding; `Attention`'s is its keys and values. Attributes that are
    tensors, or lists of tensors, hold one row of the batch in each row."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order. rows: int64."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, list):
                setattr(self, name, [tensor[rows] for tensor in value])


class Layer(Protocol):
    """What the stack asks of a layer beside being a module."""

    plan_key: Hashable
    """Layers with equal keys share a plan."""

    def plan(self, inputs: Inputs) -> Any:
        """What a forward pass needs once for all layers."""

    def state(self, columns: int) -> State | None:
        """An empty state for decoding up to `columns` tokens; it learns its batch, dtype and device from
        the first tokens. None: the layer remembers nothing."""

    def __call__(self, x: Tensor, plan: Any, state: Any, carried: Carried) -> tuple[Tensor, Carried]:
        """(batch, length, width) -> the same, and what is handed on; with a state, x continues what the
        state holds."""


class Pointwise:
    """The protocol's part for layers that look at one token at a time."""

    plan_key: Hashable = None

    def plan(self, inputs: Inputs) -> None:
        """Nothing is shared."""

    def state(self, columns: int) -> None:
        """Nothing is remembered."""
