"""Decoding a batch of prompts: one parallel pass over the prompts, then one token at a time from states.

Prompts of different length are padded on the left, so that all rows grow at the same column; padding is
a document of its own, which nothing after it can see: a prompt gets what it would get alone (up to
rounding, which differs with the shape of a matrix product). Rows that have ended are dropped from the
batch once they are half of it. Memory: the states of the longest prompt plus `max_tokens` for each row.
The caller chooses precision by running it under autocast, or by the module's own dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cupola.errors import InputError
from cupola.generate.sampling import Sampling, choose
from cupola.models.stack import Cache, LanguageModel, in_eval_mode

FinishReason = Literal["stop", "length", "max_positions"]


@dataclass
class Completion:
    """What follows a prompt."""

    tokens: list[int] = field(default_factory=list)
    """The new tokens; a stop token is the last of them."""
    log_probabilities: list[float] = field(default_factory=list)
    """Of each new token under the model (natural, before temperature and truncation)."""
    finish_reason: FinishReason = "length"
    """stop: a stop token came; length: `max_tokens` were made; max_positions: the last token stands beyond
    the model's learned positions, so that it can't be read."""


@torch.no_grad()
def generate(
    module: LanguageModel,
    prompts: list[list[int]],
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop: set[int] | None = None,
    banned: frozenset[int] = frozenset(),
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue each prompt.

    Args:
        prompts: token ids, at least one each.
        max_tokens: new tokens for each prompt, at most.
        temperature, top_k, top_p, seed, banned: as `Sampling`. The same seed, prompt index and prompt give
            the same completion in any batch.
        stop: tokens that end a completion.
        on_token: called with (index of the prompt, token) as soon as a token is chosen.

    Raises:
        InputError: an empty prompt, a token outside the vocabulary, a prompt longer than the learned
            positions, impossible sampling settings.
    """
    sampling = Sampling(temperature, top_k, top_p, seed, banned)
    _check(module, prompts, max_tokens)
    completions = [Completion() for _ in prompts]
    if not prompts or max_tokens == 0:
        return completions
    batch = _Batch(module, prompts, max_tokens)
    with in_eval_mode(module):
        while batch.rows:
            tokens, log_probabilities = choose(batch.logits(), sampling, batch.places())
            ended = []
            pairs = zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
            for row, (token, log_probability) in enumerate(pairs):
                index = batch.rows[row]
                if index in batch.ended:
                    continue
                completion = completions[index]
                completion.tokens.append(token)
                completion.log_probabilities.append(log_probability)
                if on_token is not None:
                    on_token(index, token)
                reason = batch.reason_to_end(index, token, stop or set(), len(completion.tokens))
                if reason is not None:
                    completion.finish_reason = reason
                    ended.append(index)
            batch.step(tokens, ended)
    return completions


def _check(module: LanguageModel, prompts: list[list[int]], max_tokens: int) -> None:
    if max_tokens < 0:
        raise InputError(f"max_tokens must be 0 or more, not {max_tokens}")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(
                f"prompt {index} is empty: give it at least one token (the delimiter begins a text)"
            )
        if not all(0 <= token < module.vocabulary for token in prompt):
            raise InputError(f"prompt {index} holds a token outside the vocabulary of {module.vocabulary}")
        if module.max_positions is not None and len(prompt) > module.max_positions:
            raise InputError(
                f"prompt {index} has {len(prompt)} tokens, but the model's positions end at "
                f"{module.max_positions}: shorten it"
            )


class _Batch:
    """The rows under way, and their states."""

    def __init__(self, module: LanguageModel, prompts: list[list[int]], max_tokens: int) -> None:
        self.module, self.max_tokens = module, max_tokens
        self.lengths = [len(prompt) for prompt in prompts]
        self.rows = list(range(len(prompts)))
        self.ended: set[int] = set()
        self.made = 0
        device = module.embedding.weight.device
        distinct = {tuple(prompt): row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        # A prompt that is continued several times is read once.
        self.repeats: Tensor | None = None
        if len(distinct) < len(prompts):
            self.repeats = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
        longest = max(self.lengths)
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in distinct]
        self.input = torch.tensor(padded, device=device)
        first = None
        if min(self.lengths) < longest:
            first = torch.tensor([longest - len(prompt) for prompt in distinct], device=device)
        self.cache: Cache = module.cache(longest + max_tokens, first)

    def logits(self) -> Tensor:
        """Of the token after the last one of each row: (rows, vocabulary)."""
        hidden = self.module.hidden(self.input, cache=self.cache)[:, -1]
        if self.repeats is not None:
            hidden = hidden[self.repeats]
            self.cache.select(self.repeats)
            self.repeats = None
        return self.module.logits(hidden)

    def places(self) -> list[tuple[int, int]]:
        """(prompt's index, position of the new token) of each row."""
        return [(index, self.lengths[index] + self.made) for index in self.rows]

    def reason_to_end(self, index: int, token: int, stop: set[int], made: int) -> FinishReason | None:
        """Why a completion of `made` tokens ends with this token, if it does."""
        if token in stop:
            return "stop"
        if made == self.max_tokens:
            return "length"
        if self.module.max_positions is not None and self.lengths[index] + made > self.module.max_positions:
            return "max_positions"
        return None

    def step(self, tokens: Tensor, ended: list[int]) -> None:
        """Take the chosen tokens as next input; drop rows once half of them have ended."""
        self.made += 1
        self.ended.update(ended)
        self.input = tokens[:, None]
        kept = [row for row, index in enumerate(self.rows) if index not in self.ended]
        if len(kept) <= len(self.rows) // 2 or self._out_of_positions():
            chosen = torch.tensor(kept, dtype=torch.int64, device=tokens.device)
            self.rows = [self.rows[row] for row in kept]
            self.input = self.input[chosen]
            if self.rows:
                self.cache.select(chosen)

    def _out_of_positions(self) -> bool:
        """Would an ended row, kept in the batch, run past the learned positions?"""
        limit = self.module.max_positions
        return limit is not None and any(self.lengths[i] + self.made > limit for i in self.rows)
