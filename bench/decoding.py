"""Time of one decoded token after contexts of different length, families in turns within one process."""

import statistics
import time
from typing import Any

import torch

from bench.families import MODELS
from cupola.models import build
from cupola.models.stack import Cache, LanguageModel

TOKENS = 16
ROUNDS = 7
PREFILL = 4096
"""Tokens of the context that are read at once."""


def decode_milliseconds(
    names: list[str], contexts: tuple[int, ...], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each family: milliseconds of a token after each context (median of rounds), and the bytes
    that its states hold after the longest."""
    shape = options["shape"]
    modules = {
        name: build(MODELS[name](shape), shape.vocabulary, seed=0, device=options["device"]) for name in names
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    held: dict[str, int] = {}
    for context in contexts:
        caches = {name: filled(modules[name], context, TOKENS * ROUNDS) for name in names}
        rounds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                rounds[name].append(seconds_per_token(modules[name], caches[name]))
        for name in names:
            times[name].append(1e3 * statistics.median(rounds[name]))
            held[name] = state_bytes(caches[name])
    return [{"name": n, "milliseconds": times[n], "state_bytes": held[n]} for n in names]


@torch.no_grad()
def filled(module: LanguageModel, context: int, more: int) -> Cache:
    """The cache after a context of random tokens, with room for so many more."""
    cache = module.cache(context + more)
    device = module.embedding.weight.device
    for begin in range(0, context, PREFILL):
        size = min(PREFILL, context - begin)
        module(torch.randint(module.vocabulary, (1, size), device=device), cache=cache)
    return cache


@torch.no_grad()
def seconds_per_token(module: LanguageModel, cache: Cache) -> float:
    """Of a turn of `TOKENS` tokens."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=module.embedding.weight.device)
    begun = time.perf_counter()
    for _ in range(TOKENS):
        token = module.logits(module.hidden(token, cache=cache)).argmax(-1)
    token.item()
    return (time.perf_counter() - begun) / TOKENS


def state_bytes(cache: Cache) -> int:
    """What all states hold."""
    found: dict[int, int] = {}
    for states in cache.states.values():
        for state in states:
            for held in vars(state).values() if state is not None else ():
                for tensor in held if isinstance(held, list | tuple) else [held]:
                    if isinstance(tensor, torch.Tensor):
                        storage = tensor.untyped_storage()
                        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
