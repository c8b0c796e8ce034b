"""More rows of embedding and head, for tokens that the weights have not met.

Guarantees: the rows of known tokens are the same bit for bit, so with known tokens in and out a model has the
logits that it had. The row of a new token is the mean of the rows of the tokens that its text was before
(Gee et al. 2022, "Fast Vocabulary Transfer", EMNLP industry, 2210.02211): in the embedding and in the head.
It begins as the model would have read and written it, where a random row would begin as noise. A row that no
token has is the mean of all known ones, whose logit is never above the largest (Hewitt 2021, "Initializing
New Word Embeddings for Pretrained Language Models").
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROWS = ("embedding.weight", "head.weight")
"""The matrices with a row a token; a tied head is the embedding."""


def extended(
    weights: Mapping[str, Tensor], rows: int, known: int, pieces: Mapping[int, Sequence[int]]
) -> dict[str, Tensor]:
    """The weights with `rows` rows of embedding and head.

    Args:
        weights: name -> tensor; only `ROWS` are changed.
        rows: at least as many as there are.
        known: the first so many rows are those of known tokens, and stay.
        pieces: new token -> known tokens; its row may be one that was there and belonged to no token.
    """
    found = dict(weights)
    for name in ROWS:
        if name in weights:
            found[name] = _extended(weights[name], rows, known, pieces)
    return found


def _extended(table: Tensor, rows: int, known: int, pieces: Mapping[int, Sequence[int]]) -> Tensor:
    there = table.shape[0]
    mean = table[:known].double().mean(0).to(table.dtype)
    result = torch.cat([table, mean.expand(rows - there, -1)])
    for token, parts in pieces.items():
        result[token] = table[list(parts)].double().mean(0).to(table.dtype) if parts else mean
    return result
