"""What a model makes of a long context: whether it finds what lies far back, and what each token costs by how
much was read before it.

Probes are texts that hide a pass key or several needles and ask for one of them (`generators.retrieval`), of
a given length and with the thing at a given depth. No document of any corpus hides the number of a probe. A
probe counts as answered if greedy decoding would write exactly the right digits: they are read in one pass,
and each must be the likeliest token after those before it, of the tokens that text can hold.

Loss by position is the mean loss of held-out text over positions in rows of the length in question, in
buckets that end at powers of two. A model that uses all of its context has a curve that falls to its
end; one that was trained on shorter rows may have one that rises where they ended. Documents are cut into
whole rows, so that every bucket sees the same rows; what is left over at a document's end is not scored, nor
are documents that are shorter than a row. Tokens of one row depend on each other, so standard errors are
those of a mean over rows.

Cost: one forward pass over the text of the probes or rows; logits only of what is scored.
"""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch

from cupola.corpus.generators.retrieval import Haystack, Kind
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.evaluate.shares import standard_error
from cupola.models.stack import LanguageModel, in_eval_mode
from cupola.objectives.cross_entropy import token_losses
from cupola.parallel.device import Precision, autocast

BATCH_TOKENS = 16_384
TOKENS_A_SENTENCE = 4
"""Fewer than any sentence of a probe has."""
NOT_FINITE = "the loss is not finite: the weights hold NaN or infinite values, or overflow"


@dataclass(frozen=True)
class Cell:
    """Probes of one length and depth.

    Attributes:
        length: at most so many tokens, delimiter and answer included; less than a sentence more would fit.
        depth: share of the text before what is asked for.
        accuracy: share of the samples that were answered.
        log_probability: mean over the samples of the natural logarithm of the right answer's probability.
        standard_error: of the accuracy; None of one sample.
    """

    length: int
    depth: float
    samples: int
    accuracy: float
    standard_error: float | None
    log_probability: float

    def facts(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return asdict(self)


@dataclass(frozen=True)
class _Asked:
    """A probe in tokens: all of it, of which the last `answer` are to be found."""

    ids: np.ndarray
    answer: int


def refuse_beyond_positions(module: LanguageModel, lengths: Iterable[int]) -> None:
    """Refuse lengths that learned positions do not reach.

    Raises:
        InputError: names the first.
    """
    limit = module.max_positions
    for length in lengths:
        if limit is not None and length > limit:
            raise InputError(
                f"a length of {length} tokens is beyond the model's {limit} learned positions; take at most"
                f" {limit}"
            )


@torch.no_grad()
def probe(
    module: LanguageModel,
    tokenizer: Tokenizer,
    kind: Kind,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    *,
    seed: int = 0,
    precision: Precision = "fp32",
    display: Display | None = None,
) -> list[Cell]:
    """How well what is hidden is found: a cell for each length and depth, in that order.

    The samples of all cells hide the same things among the same sentences.

    Args:
        module: read in eval mode, left as it was.
        precision: "fp32" or "bf16" (autocast; log-probabilities are fp32 either way).

    Raises:
        InputError: a length beyond the learned positions, or too short for the text of a probe.
        CupolaError: a loss is not finite.
    """
    refuse_beyond_positions(module, lengths)
    haystacks = [Haystack(kind, seed, number) for number in range(samples)]
    cells = list(itertools.product(lengths, depths))
    device = next(module.parameters()).device
    found: list[Cell] = []
    with (
        in_eval_mode(module),
        (display or Display()).task(kind, sum(lengths) * len(depths) * samples, "tokens") as task,
        autocast(device, precision),
    ):
        for length, depth in cells:
            asked = [_fitted(tokenizer, haystack, length, depth) for haystack in haystacks]
            rows = max(1, BATCH_TOKENS // length)
            scores: list[tuple[bool, float]] = []
            for first in range(0, samples, rows):
                batch = asked[first : first + rows]
                scores += _scores(module, tokenizer, batch, device)
                task.advance(length * len(batch))
            found.append(_cell(length, depth, scores))
    return found


def _cell(length: int, depth: float, scores: Sequence[tuple[bool, float]]) -> Cell:
    right = [float(found) for found, _ in scores]
    logarithms = [logarithm for _, logarithm in scores]
    if not all(map(math.isfinite, logarithms)):
        raise CupolaError(NOT_FINITE)
    count = len(scores)
    return Cell(
        length, depth, count, sum(right) / count, standard_error(right), math.fsum(logarithms) / count
    )


def _fitted(tokenizer: Tokenizer, haystack: Haystack, length: int, depth: float) -> _Asked:
    """The probe with as many sentences as fit into the length."""

    def encoded(sentences: int) -> np.ndarray:
        text = f"{haystack.prompt(sentences, depth)} {haystack.answer}"
        return np.concatenate([[tokenizer.delimiter], tokenizer.encode(text)]).astype(np.int64)

    sizes = range(length // TOKENS_A_SENTENCE)
    fitting = bisect.bisect_right(sizes, length, key=lambda sentences: len(encoded(sentences)))
    if fitting == 0:
        raise InputError(
            f"a length of {length} tokens is too short for a probe of kind {haystack.kind}; with this"
            f" tokenizer it takes at least {len(encoded(0))}"
        )
    ids, before = encoded(fitting - 1), tokenizer.encode(haystack.prompt(fitting - 1, depth))
    # A token that the prompt's end shares with the answer belongs to the answer.
    other = np.flatnonzero(ids[1 : 1 + len(before)] != before)
    known = int(other[0]) if len(other) else len(before)
    return _Asked(ids, len(ids) - 1 - known)


def _scores(
    module: LanguageModel, tokenizer: Tokenizer, batch: Sequence[_Asked], device: torch.device
) -> list[tuple[bool, float]]:
    """(would greedy decoding write the answer?, its log-probability) of each. Padding stands on the right,
    where nothing that is scored sees it."""
    tokens = np.zeros((len(batch), max(len(row.ids) for row in batch)), dtype=np.int64)
    rows: list[int] = []
    columns: list[int] = []
    for number, row in enumerate(batch):
        tokens[number, : len(row.ids)] = row.ids
        rows += [number] * row.answer
        columns += range(len(row.ids) - row.answer, len(row.ids))
    inputs = torch.from_numpy(tokens).to(device)
    at, place = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
    hidden = module.hidden(inputs[:, :-1])[at, place - 1]
    logits = module.logits(hidden).float()
    wanted = inputs[at, place][:, None]
    logarithms = logits.log_softmax(-1).gather(1, wanted)[:, 0].double()
    banned = sorted(tokenizer.unwritten(logits.shape[-1]))
    written = logits.index_fill(-1, torch.tensor(banned, dtype=torch.int64, device=device), -torch.inf)
    right = written.argmax(-1) == wanted[:, 0]
    counts = [row.answer for row in batch]
    return [
        (bool(found.all()), float(some.sum()))
        for found, some in zip(right.split(counts), logarithms.split(counts), strict=True)
    ]


@dataclass(frozen=True)
class Bucket:
    """Tokens that were predicted from `first` to `last` tokens before them, the delimiter included.

    Attributes:
        loss: mean, in nats a token.
        tokens: how many were scored.
        standard_error: of the mean, over rows; None of one row.
    """

    first: int
    last: int
    loss: float
    tokens: int
    standard_error: float | None

    def facts(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return asdict(self)


@dataclass(frozen=True)
class LossByPosition:
    """Rows of one length.

    Attributes:
        length: tokens read in each row.
        sums: (rows, buckets) fp64: the summed losses of a row's tokens in each bucket, in nats.
    """

    length: int
    sums: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return len(self.sums)

    def __add__(self, other: "LossByPosition") -> "LossByPosition":
        """The rows of both."""
        assert self.length == other.length
        return LossByPosition(self.length, np.concatenate([self.sums, other.sums]))

    def buckets(self) -> list[Bucket]:
        """Mean losses by position; none without a row."""
        found = []
        firsts = _firsts(self.length)
        for number, first in enumerate(firsts if self.rows else []):
            last = (*firsts, self.length + 1)[number + 1] - 1
            means = (self.sums[:, number] / (last - first + 1)).tolist()
            mean = math.fsum(means) / len(means)
            found.append(Bucket(first, last, mean, len(means) * (last - first + 1), standard_error(means)))
        return found

    def facts(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"rows": self.rows, "buckets": [bucket.facts() for bucket in self.buckets()]}


def _firsts(length: int) -> list[int]:
    """Where buckets begin: 1, 2, 3 (to 4), 5 (to 8), 9 (to 16), ..."""
    return [1, *(2**power + 1 for power in range((length - 1).bit_length()))]


@torch.no_grad()
def loss_by_position(
    module: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    length: int,
    *,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "loss by position",
) -> LossByPosition:
    """Score the whole rows of `length` tokens that texts can be cut into.

    The first row of a text begins with the delimiter; the token that ends the text may be scored in its last.

    Args:
        module, precision: as in `probe`.
        texts: documents; those of less than `length` tokens (delimiter included) are passed over.

    Raises:
        InputError: a length beyond the learned positions.
        CupolaError: a loss is not finite.
    """
    refuse_beyond_positions(module, [length])
    device = next(module.parameters()).device
    starts = np.array(_firsts(length)) - 1
    sums: list[np.ndarray] = [np.zeros((0, len(starts)))]
    rows = _rows(tokenizer, texts, length)
    with (
        in_eval_mode(module),
        (display or Display()).task(title, unit="tokens") as task,
        autocast(device, precision),
    ):
        while batch := list(itertools.islice(rows, max(1, BATCH_TOKENS // length))):
            losses = _losses(module, torch.from_numpy(np.stack(batch)).to(device))
            sums.append(np.add.reduceat(losses, starts, axis=1))
            task.advance(len(batch) * length)
    found = np.concatenate(sums)
    if not np.isfinite(found).all():
        raise CupolaError(NOT_FINITE)
    return LossByPosition(length, found)


def _rows(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> Iterator[np.ndarray]:
    """(length + 1,) int64 each: a row and its last target."""
    delimiter = np.array([tokenizer.delimiter])
    for text in texts:
        ids = np.concatenate([delimiter, tokenizer.encode(text), delimiter]).astype(np.int64)
        for start in range(0, len(ids) - length, length):
            yield ids[start : start + length + 1]


def _losses(module: LanguageModel, tokens: torch.Tensor) -> np.ndarray:
    """(rows, length) fp64."""
    hidden = module.hidden(tokens[:, :-1])
    head = cast(torch.Tensor, module.head_weight)
    losses = token_losses(hidden.flatten(0, 1), head, tokens[:, 1:].flatten())
    return losses.view(len(tokens), -1).double().cpu().numpy()
