"""Texts to texts: each prompt as the beginning of a document, and what a model writes after it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cupola.corpus.tokenizer import Tokenizer
from cupola.generate.decode import FinishReason, generate
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision, autocast


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt: its text, and its tokens (the delimiter last where the document ended)."""

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: FinishReason


def continue_texts(
    module: LanguageModel,
    tokenizer: Tokenizer,
    prompts: list[str],
    max_tokens: int,
    precision: Precision = "fp32",
    on_token: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> list[Continuation]:
    """Continue each prompt until its document ends or `max_tokens` are made.

    Tokens that no text holds are never chosen.

    Args:
        precision: "fp32" (the parameters' dtype) or "bf16" (autocast).
        on_token, sampling: as `generate`.

    Raises:
        InputError: as `generate`.
    """
    delimiter = tokenizer.delimiter
    with autocast(next(module.parameters()).device, precision):
        completions = generate(
            module,
            [[delimiter, *tokenizer.encode(prompt).tolist()] for prompt in prompts],
            max_tokens,
            stop={delimiter},
            banned=tokenizer.unwritten(module.vocabulary),
            on_token=on_token,
            **sampling,
        )
    return [
        Continuation(
            prompt,
            tokenizer.decode(token for token in done.tokens if token != delimiter),
            done.tokens,
            done.finish_reason,
        )
        for prompt, done in zip(prompts, completions, strict=True)
    ]
