"""What the loop trains on: a batch is a list of microbatches, a microbatch is rows of one length.

A document's delimiter opens the next segment: `documents` grows by one at each delimiter in a row, starting
from 0, whatever document the row begins in. So the first word of a document is predicted from the
delimiter, the last word predicts the delimiter, and every target is meaningful.
"""

from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""

FILLER = -1
"""The source of a row that only fills a rank's share; all its targets are `IGNORED`."""


@dataclass(frozen=True, eq=False)
class Microbatch:
    """Rows of one forward and backward pass.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64: the token that follows; `IGNORED` where none counts.
        documents: (B, T) int32: number of the document within its row.
        sources: (B,) int64, numpy: index into `Order.names` of each row's source, or `FILLER`.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    sources: np.ndarray

    @classmethod
    def of_rows(
        cls,
        rows: np.ndarray | torch.Tensor,
        delimiter: int | None = None,
        sources: np.ndarray | None = None,
        learnt: np.ndarray | None = None,
    ) -> "Microbatch":
        """Rows of tokens, each with one token more than its length, as a microbatch.

        Args:
            rows: (B, T + 1), any integers; copied.
            delimiter: the token between documents; None if every row is one document.
            sources: (B,) index of each row's source, all 0 by default; targets of `FILLER` rows are ignored.
            learnt: (B, T + 1), which of the tokens count as targets; all by default.
        """
        rows = torch.as_tensor(rows).long()
        # `contiguous` would give two views of the same memory where there is one row.
        tokens, targets = (
            part.clone(memory_format=torch.contiguous_format) for part in (rows[:, :-1], rows[:, 1:])
        )
        if sources is None:
            sources = np.zeros(len(rows), dtype=np.int64)
        targets[torch.from_numpy(sources == FILLER)] = IGNORED
        if learnt is not None:
            targets[torch.from_numpy(learnt[:, 1:] == 0)] = IGNORED
        if delimiter is None:
            documents = torch.zeros_like(tokens, dtype=torch.int32)
        else:
            documents = (tokens == delimiter).cumsum(dim=1, dtype=torch.int32)
        return cls(tokens, targets, documents, sources)

    def to(self, device: torch.device | str) -> "Microbatch":
        """The same on a device; nothing is copied that is there already."""
        tokens, targets, documents = (
            part.to(device, non_blocking=True) for part in (self.tokens, self.targets, self.documents)
        )
        return Microbatch(tokens, targets, documents, self.sources)


@dataclass(frozen=True, eq=False)
class Batch:
    """One step of training: this rank's microbatches, and what is known of the whole batch.

    Attributes:
        start: position of the stage at which it begins, in tokens.
        end: position at which it ends, and the next one begins.
        microbatches: this rank's, all ranks having as many, of the same shapes.
        tokens_by_source: tokens of each source in the whole batch, over all ranks; every source is listed.
        valid_tokens: targets that count in the whole batch, over all ranks: what the loss is divided by.
    """

    start: int
    end: int
    microbatches: list[Microbatch]
    tokens_by_source: dict[str, int]
    valid_tokens: int
