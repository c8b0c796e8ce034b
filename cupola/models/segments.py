"""Where documents begin, as the recurrent layers need it: made once a forward pass, shared by all of them.

A recurrent layer forgets at the first token of a document: its scan drops the carried state there, its
convolution and its token shift see zeros before it. In a form that works chunk by chunk that is a mask
inside each chunk and three factors for the state that is carried between chunks (`Chunks`).
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models.attention import document_begins


@dataclass(frozen=True)
class Chunks:
    """Rows cut into `n` chunks of `size` tokens; the last is padded with tokens of the last document."""

    same: Tensor
    """(batch, n, size, size) bool: [i, j] tokens i and j of the chunk are of one document."""
    seen: Tensor
    """(batch, n, size) bool: the token sees the state that enters the chunk."""
    contributed: Tensor
    """(batch, n, size) bool: the token contributes to the state that leaves the chunk."""
    survives: Tensor
    """(batch, n) bool: the entering state reaches the chunk's end."""


@dataclass(frozen=True)
class Segments:
    """The documents of (batch, length) tokens.

    Attributes:
        numbers: (batch, length), a number for each token's document, changing where one begins; None: each
            row is one document, and nothing is masked.
    """

    numbers: Tensor | None
    _chunks: dict[int, Chunks] = field(default_factory=dict, repr=False)

    @cached_property
    def columns(self) -> Tensor | None:
        """(batch, length) int64: how many tokens of its document stand before each token; None as above."""
        if self.numbers is None:
            return None
        everywhere = torch.arange(self.numbers.shape[1], device=self.numbers.device)
        return everywhere - document_begins(self.numbers)

    def reaches(self, back: int) -> Tensor | None:
        """(batch, length, 1) bool: is the token `back` columns before of the same document? None: wherever
        there is such a column."""
        return None if self.columns is None else (self.columns >= back)[..., None]

    def chunks(self, size: int) -> Chunks | None:
        """Masks and factors of chunks of `size` tokens; None: nothing is masked."""
        if self.columns is None:
            return None
        if size not in self._chunks:
            self._chunks[size] = _chunks(self.columns, size)
        return self._chunks[size]


def _chunks(columns: Tensor, size: int) -> Chunks:
    batch, length = columns.shape
    begins = columns == 0
    begins[:, 0] = False  # what enters the first chunk is the state that was handed in: it belongs to the row
    begins = F.pad(begins, (0, -length % size))
    inside = begins.view(batch, -1, size).cumsum(-1)
    return Chunks(
        same=inside[..., :, None] == inside[..., None, :],
        seen=inside == 0,
        contributed=inside == inside[..., -1:],
        survives=inside[..., -1] == 0,
    )
