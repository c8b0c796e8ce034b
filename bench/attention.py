"""Attention's paths beside each other: forward and backward, milliseconds of CPU time, median of interleaved
rounds. The constants of `cupola/models/attention.py` (TILE, SDPA_LENGTH, KEPT_BYTES) are read off its table.

    python -m bench.attention [--threads 2] [--dtype bf16] [--heads 6] [--tokens 2048]

Columns: `torch` is scaled_dot_product_attention (causal; with documents, one call a document); `formula`
is the plain one (only up to 1024 tokens a row); `N kept` and `N again` are tiles of N queries whose
probabilities are kept for the backward pass or computed again. Documents are of about 128 tokens, and other
ones in each round, as they are in each step of training.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from cupola.models import attention

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TILES = (64, 128, 256)
ROUNDS = 5
Path = Callable[[Tensor, Tensor, Tensor], Tensor]


def tiled(size: int, kept: bool, plan: attention.Plan) -> Path:
    """The tiled path with constants of our own."""
    settings = {"TILE": dict.fromkeys(attention.TILE, size), "KEPT_BYTES": 2**40 if kept else 0}

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with mock.patch.multiple(attention, **settings):
            return attention.attend_tiled(query, key, value, plan)

    return run


def by_document(ends: list[list[int]]) -> Path:
    """torch's kernel, once for each document."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = []
        for row, stops in enumerate(ends):
            spans = zip([0, *stops[:-1]], stops, strict=True)
            parts = [[x[row : row + 1, a:b] for x in (query, key, value)] for a, b in spans]
            rows.append(torch.cat([attention.attend_sdpa(*part) for part in parts], dim=1))
        return torch.cat(rows)

    return run


def paths(batch: int, length: int, documents: bool, seed: int) -> dict[str, Path]:
    """What is measured for one shape, in one round."""
    numbers, ends = None, [[length] for _ in range(batch)]
    if documents:
        begins = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 1 / 128
        numbers = begins.cumsum(dim=1).to(torch.int32)
        ends = [[*(begins[row, 1:].nonzero().flatten() + 1).tolist(), length] for row in range(batch)]
    plan = attention.plan(batch, length, numbers, torch.device("cpu"))
    found: dict[str, Path] = {"torch": by_document(ends) if documents else attention.attend_sdpa}
    if length <= 1024:
        found["formula"] = lambda query, key, value: attention.attend_reference(query, key, value, plan)
    for size in TILES:
        if size <= length:
            found[f"{size} kept"] = tiled(size, True, plan)
            found[f"{size} again"] = tiled(size, False, plan)
    return found


def measure(
    found: Callable[[int], dict[str, Path]], inputs: list[Tensor], gradient: Tensor
) -> dict[str, float]:
    """Milliseconds of each path."""
    times: dict[str, list[float]] = defaultdict(list)
    for seed in range(ROUNDS + 1):
        for name, path in found(seed).items():
            begun = time.process_time()
            path(*inputs).backward(gradient)
            times[name].append(1000 * (time.process_time() - begun))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), action="append")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--key-value-heads", type=int)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048, help="of a microbatch, at least one row")
    parser.add_argument("--length", type=int, action="append", help=f"of a row; default {LENGTHS}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.dtype or ("fp32", "bf16"):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        for documents in (False, True):
            for length in options.length or LENGTHS:
                batch = max(1, options.tokens // length)
                heads = (options.heads, *[options.key_value_heads or options.heads] * 2)
                inputs = [torch.randn(batch, length, n, options.head_width).to(dtype) for n in heads]
                gradient = torch.randn(batch, length, options.heads, options.head_width).to(dtype)
                times = measure(
                    partial(paths, batch, length, documents), [x.requires_grad_() for x in inputs], gradient
                )
                best = min(times, key=lambda path: times[path])
                row = "  ".join(f"{path} {ms:.1f}{'*' if path == best else ''}" for path, ms in times.items())
                kind = "documents" if documents else "causal"
                print(f"{name} {kind:9s} {batch} x {length}:  {row}", flush=True)


if __name__ == "__main__":
    main()
