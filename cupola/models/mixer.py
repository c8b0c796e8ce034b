"""What the stack asks of a mixer, and what it tells it: the protocol that a new kind of mixer keeps."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

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


class State(Protocol):
    """What a mixer remembers while decoding; `Attention`'s is its keys and values."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order. rows: int64."""


class Mixer(Protocol):
    """What the stack asks of a mixer beside being a module."""

    plan_key: Hashable
    """Mixers with equal keys share a plan."""

    def plan(self, inputs: Inputs) -> Any:
        """What a forward pass needs once for all layers."""

    def state(self, columns: int) -> State:
        """An empty state for decoding up to `columns` tokens; it learns its batch, dtype and device from
        the first tokens."""

    def __call__(self, x: Tensor, plan: Any, state: Any) -> Tensor:
        """(batch, length, width) -> the same; with a state, x continues what the state holds."""
