"""Choosing the next token: temperature, top-k, top-p, and randomness keyed by place.

The uniform number behind a choice is a hash of (seed, prompt's index, token's position), so that a
completion depends neither on what else is in its batch nor on the device. Choosing is by inversion: the
first token at which the cumulated probability exceeds the number. Tokens are sorted only where truncation
needs it (for 8 rows of 8,192 a full sort is a fifth of a decoding step).
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from cupola.errors import CupolaError, InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (Holtzman et al. 2020)."""
    seed: int = 0
    banned: frozenset[int] = frozenset()
    """Never chosen: tokens that text can't hold (reserved ones, rows beyond the tokenizer's)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")


def uniform(seed: int, prompt: int, position: int) -> float:
    """A number in [0, 1), 53 bits, from the place where it is used."""
    key = blake2b(f"{seed}/{prompt}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(key, "big") >> 11) * 2.0**-53


def choose(logits: Tensor, sampling: Sampling, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The next token of each row.

    Args:
        logits: (batch, vocabulary).
        places: (prompt's index, position of the new token) of each row.

    Returns:
        tokens (batch,) int64, and their log-probabilities under the model itself, before temperature and
        truncation, (batch,) fp32.

    Raises:
        CupolaError: the logits are not finite.
    """
    logits = logits.float()
    log_normaliser = logits.logsumexp(dim=-1)
    if not torch.isfinite(log_normaliser).all():
        raise CupolaError(
            "the model's logits are not finite: its weights are damaged or its training diverged; "
            "take an earlier checkpoint"
        )
    if sampling.banned:
        banned = torch.tensor(sorted(sampling.banned), device=logits.device)
        logits = logits.index_fill(-1, banned, -torch.inf)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        tokens = _inverted(logits, sampling, places)
    chosen = logits.gather(1, tokens[:, None]).squeeze(1)
    return tokens, chosen - log_normaliser


def _inverted(logits: Tensor, sampling: Sampling, places: list[tuple[int, int]]) -> Tensor:
    values, tokens = _candidates(logits, sampling)
    # From the peak, so that dividing by a temperature near 0 leaves the likeliest at 0 and can't overflow.
    values = values.double()
    values = (values - values.amax(dim=-1, keepdim=True)) / sampling.temperature
    cumulated = values.softmax(dim=-1).cumsum(dim=-1)
    # The last candidate that top_p keeps is the first whose cumulated probability reaches it.
    last = (cumulated < sampling.top_p).sum(dim=-1).clamp_(max=values.shape[-1] - 1)
    total = cumulated.gather(1, last[:, None])
    numbers = torch.tensor(
        [uniform(sampling.seed, *place) for place in places], dtype=torch.float64, device=logits.device
    )
    index = torch.minimum((cumulated <= numbers[:, None] * total).sum(dim=-1), last)
    return index if tokens is None else tokens.gather(1, index[:, None]).squeeze(1)


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits to choose from, in falling order where that matters, and their tokens (None: in place)."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        values, tokens = logits.topk(sampling.top_k, dim=-1)
        return values, tokens
    if sampling.top_p < 1:
        values, tokens = logits.sort(dim=-1, descending=True, stable=True)
        return values, tokens
    return logits, None
