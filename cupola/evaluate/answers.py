"""Bits per byte of what a model has learnt to answer: the code length of the answers in held-out
conversations, given all that was said before them.

Only tokens that the stage would learn are scored, an answer's stop token among them (whose bits count and
which adds no bytes, as the delimiter of a text). Rows are read as training reads them, packed, so no token of
another conversation is seen.
"""

import math
from typing import cast

import torch

from cupola.corpus.tokenizer import Tokenizer
from cupola.data.batch import LEARNT, Answers, Microbatch
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.evaluate.bits import BitsPerByte
from cupola.evaluate.reading import reading
from cupola.models.stack import LanguageModel
from cupola.objectives.cross_entropy import token_losses
from cupola.parallel.device import Precision


def answer_bits(
    module: LanguageModel,
    store: TokenStore,
    tokenizer: Tokenizer,
    *,
    most_tokens: int | None = None,
    chosen_only: bool = False,
    precision: Precision = "fp32",
    display: Display | None = None,
    title: str = "answers",
) -> BitsPerByte:
    """Score the rows of a store of packed conversations.

    Args:
        module: read in eval mode, left as it was.
        most_tokens: read only the first rows, which hold no more than so many tokens; at least one.
        chosen_only: of pairs and rated answers, those that are wanted.
        precision: "fp32" or "bf16" (autocast; losses are fp32 either way and summed in fp64).

    Raises:
        CupolaError: a loss is not finite.
    """
    nats, tokens, size = 0.0, 0, 0
    with reading(module, store, most_tokens, precision, display, title) as rows:
        for microbatch in rows:
            answers = cast(Answers, microbatch.answers)
            places = answers.places[answers.kinds == LEARNT] if chosen_only else answers.places
            scored = microbatch.targets.flatten()[places]
            nats += _nats(module, microbatch, places)
            tokens += len(scored)
            size += int(tokenizer.text_bytes[scored.cpu().numpy()].sum())
    if not math.isfinite(nats):
        raise CupolaError(
            "the held-out loss is not finite: the weights hold NaN or infinite values, or overflow"
        )
    return BitsPerByte(nats / math.log(2), size, tokens)


def _nats(module: LanguageModel, microbatch: Microbatch, places: torch.Tensor) -> float:
    hidden = module.hidden(microbatch.tokens, microbatch.documents).flatten(0, 1)[places]
    head = cast(torch.Tensor, module.head_weight)
    return float(token_losses(hidden, head, microbatch.targets.flatten()[places]).double().sum())
