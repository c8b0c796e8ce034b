"""Conversations to answers: what a model says next as the assistant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cupola.chat.conversation import Message
from cupola.chat.encoding import prompt, stop_ids
from cupola.chat.template import ChatTemplate
from cupola.corpus.tokenizer import Tokenizer
from cupola.generate.decode import Completion, FinishReason, generate
from cupola.models.stack import LanguageModel
from cupola.parallel.device import Precision, autocast


@dataclass(frozen=True)
class Answer:
    """What the assistant says: its text, and its tokens (a stop token last where the answer ended)."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason


def answer(
    module: LanguageModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    precision: Precision = "fp32",
    on_token: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> list[Answer]:
    """The next answer in each conversation, until it ends or `max_tokens` are made.

    A conversation begins after a delimiter, as in training. Tokens that no text holds are never chosen, save
    those that end an answer.

    Args:
        conversations: messages so far, the last one not the assistant's.
        precision: "fp32" (the parameters' dtype) or "bf16" (autocast).
        on_token, sampling: as `generate`; `on_token` gets the token that ends an answer as well.

    Raises:
        InputError: as `generate`; the tokenizer lacks the template's tokens.
    """
    prompts = [
        [tokenizer.delimiter, *prompt(template, tokenizer, messages).tolist()] for messages in conversations
    ]
    completions = complete(
        module, tokenizer, template, prompts, max_tokens, precision, on_token=on_token, **sampling
    )
    return [
        Answer(said_in(done, tokenizer, template), done.tokens, done.finish_reason) for done in completions
    ]


def complete(
    module: LanguageModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompts: list[list[int]],
    max_tokens: int,
    precision: Precision = "fp32",
    **sampling: Any,
) -> list[Completion]:
    """An answer to each prompt that opens one, as tokens. Arguments as `answer`."""
    stop = _ends(template, tokenizer)
    with autocast(next(module.parameters()).device, precision):
        return generate(
            module,
            prompts,
            max_tokens,
            stop=set(stop),
            banned=tokenizer.unwritten(module.vocabulary) - stop,
            **sampling,
        )


def said_in(completion: Completion, tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """What an answer says, without the token that ends it."""
    stop = _ends(template, tokenizer)
    return tokenizer.decode(token for token in completion.tokens if token not in stop)


def _ends(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    return stop_ids(template, tokenizer) | {tokenizer.delimiter}
