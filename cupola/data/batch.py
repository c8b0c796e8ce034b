"""What the loop trains on: a batch is a list of microbatches, a microbatch is rows of one length.

A document's delimiter opens the next segment: `documents` grows by one at each delimiter in a row, starting
from 0, whatever document the row begins in. So the first word of a document is predicted from the
delimiter, the last word predicts the delimiter, and every target is meaningful.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""

LEARNT, REJECTED, MISMATCHED = 1, 2, 3
"""What is learnt of a token: that it is said; of pairs and rated answers, that it belongs to an answer which
is not wanted; or only how likely it is, since its answer stands after the prompt of another (KTO)."""

FILLER = -1
"""The source of a row that only fills a rank's share; all its targets are `IGNORED`."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The learnt targets of a microbatch, one row after the other, and which sequences they belong to.

    Attributes:
        places: (N,) int64, into the flattened targets.
        sequences: (N,) int64, the number of each one's sequence among those with something to learn.
        count: how many sequences those are.
        kinds: (N,) uint8: `LEARNT`, `REJECTED` or `MISMATCHED`.
        figures: (N,) fp32 each: what an objective must know of every target beside it.
    """

    places: torch.Tensor
    sequences: torch.Tensor
    count: int
    kinds: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        targets: torch.Tensor,
        documents: torch.Tensor,
        learnt: np.ndarray,
        figures: Mapping[str, np.ndarray] | None = None,
    ) -> "Answers":
        """Those of rows of targets, (B, T) each; what is learnt of them and the figures are cut likewise."""
        length = targets.shape[1]
        places = (targets.flatten() != IGNORED).nonzero().squeeze(1)
        # A document's number grows within its row only.
        keys = documents.flatten()[places].long() + places // length * (length + 1)
        found, sequences = keys.unique(return_inverse=True)
        chosen = {
            name: torch.from_numpy(f.reshape(-1)[places.numpy()]) for name, f in (figures or {}).items()
        }
        kinds = torch.from_numpy(learnt.astype(np.uint8).reshape(-1)[places.numpy()])
        return cls(places, sequences, len(found), kinds, chosen)

    def to(self, device: torch.device | str) -> "Answers":
        """The same on a device."""
        places, sequences, kinds = (
            part.to(device, non_blocking=True) for part in (self.places, self.sequences, self.kinds)
        )
        figures = {name: part.to(device, non_blocking=True) for name, part in self.figures.items()}
        return Answers(places, sequences, self.count, kinds, figures)


@dataclass(frozen=True, eq=False)
class Microbatch:
    """Rows of one forward and backward pass.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64: the token that follows; `IGNORED` where none counts.
        documents: (B, T) int32: number of the document within its row.
        sources: (B,) int64, numpy: index into `Order.names` of each row's source, or `FILLER`.
        answers: where only some of the tokens are learnt, those; None where all are.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    sources: np.ndarray
    answers: Answers | None = None

    @classmethod
    def of_rows(
        cls,
        rows: np.ndarray | torch.Tensor,
        delimiter: int | None = None,
        sources: np.ndarray | None = None,
        learnt: np.ndarray | None = None,
        figures: Mapping[str, np.ndarray] | None = None,
    ) -> "Microbatch":
        """Rows of tokens, each with one token more than its length, as a microbatch.

        Args:
            rows: (B, T + 1), any integers; copied.
            delimiter: the token between documents; None if every row is one document.
            sources: (B,) index of each row's source, all 0 by default; targets of `FILLER` rows are ignored.
            learnt: (B, T + 1), what is learnt of the tokens: 0 of those that are no targets; all by default.
            figures: (B, T) fp32 each, for `Answers.figures`.
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
        answers = None if learnt is None else Answers.of(targets, documents, learnt[:, 1:], figures)
        return cls(tokens, targets, documents, sources, answers)

    def to(self, device: torch.device | str) -> "Microbatch":
        """The same on a device; nothing is copied that is there already."""
        tokens, targets, documents = (
            part.to(device, non_blocking=True) for part in (self.tokens, self.targets, self.documents)
        )
        answers = None if self.answers is None else self.answers.to(device)
        return Microbatch(tokens, targets, documents, self.sources, answers)


@dataclass(frozen=True, eq=False)
class Batch:
    """One step of training: this rank's microbatches, and what is known of the whole batch.

    Attributes:
        start: position of the stage at which it begins, in tokens.
        end: position at which it ends, and the next one begins.
        microbatches: this rank's, all ranks having as many, of the same shapes.
        tokens_by_source: tokens of each source in the whole batch, over all ranks; every source is listed.
        valid_tokens: targets that count in the whole batch, over all ranks.
        sequences: where only some tokens are learnt, sequences with some in the whole batch, over all ranks.
        figures: what is to be reported of the batch, whoever made it.
    """

    start: int
    end: int
    microbatches: list[Microbatch]
    tokens_by_source: dict[str, int]
    valid_tokens: int
    sequences: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
