"""Mamba-2's scan: microseconds of CPU time a token, forward and backward, median of interleaved rounds. The
constants of `cupola/models/ssd_chunks.py` (CHUNK, SPAN) are read off its table.

    python -m bench.scan [--threads 2] [--dtype bf16] [--heads 8] [--state 128] [--length 2048]

Columns are chunk/span, in tokens; a span of the whole row shows what the cache is worth.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
from torch import Tensor

from cupola.models import ssd, ssd_chunks
from cupola.models.segments import Segments

LENGTHS = (2048, 8192)
CHUNKS = (32, 64, 128)
SPANS = (512, 1024, 2048)
HEAD_WIDTH = 64
ROUNDS = 5


def inputs(length: int, heads: int, state: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """One row, with decays as they are at first in training."""
    x = torch.randn(1, length, heads, HEAD_WIDTH).to(dtype)
    b, c = torch.randn(2, 1, length, 1, state).to(dtype)
    dt, a = 0.1 * torch.rand(1, length, heads), -torch.linspace(1, 16, heads)
    return {k: t.requires_grad_() for k, t in {"x": x, "dt": dt, "a": a, "b": b, "c": c}.items()}


def seconds(chunk: int, span: int, tensors: dict[str, Tensor], gradient: Tensor) -> float:
    """CPU time of one pass forward and backward."""
    sizes = dict.fromkeys(ssd_chunks.CHUNK, chunk)
    with mock.patch.object(ssd, "CHUNK", sizes), mock.patch.object(ssd_chunks, "SPAN", span):
        begun = time.process_time()
        ssd.scan(**tensors, segments=Segments(None))[0].backward(gradient)
        return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), action="append")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--state", type=int, default=128)
    parser.add_argument("--length", type=int, action="append", help=f"of the row; default {LENGTHS}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.dtype or ("fp32", "bf16"):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        for length in options.length or LENGTHS:
            tensors = inputs(length, options.heads, options.state, dtype)
            gradient = torch.randn_like(tensors["x"])
            paths = [(chunk, span) for chunk in CHUNKS for span in sorted({*SPANS, length})]
            times: dict[tuple[int, int], list[float]] = {path: [] for path in paths}
            for _ in range(ROUNDS + 1):
                for path in paths:
                    times[path].append(seconds(*path, tensors, gradient))
            found = {path: 1e6 * statistics.median(values[1:]) / length for path, values in times.items()}
            best = min(found, key=lambda path: found[path])
            row = "  ".join(
                f"{c}/{s} {us:.1f}{'*' if (c, s) == best else ''}" for (c, s), us in found.items()
            )
            print(f"{name} {length}:  {row}", flush=True)


if __name__ == "__main__":
    main()
