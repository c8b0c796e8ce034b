"""RWKV-7's recurrence in chunks beside the loop over tokens: forward and backward, milliseconds of CPU time,
median of interleaved rounds. CHUNK and GROUP of `cupola/models/delta_rule.py` are read off its table.

    python -m bench.delta_rule [--threads 2] [--dtype bf16] [--heads 4] [--tokens 2048] [--length 256]

Columns: `chunk x group`; `loop` is the formula token by token; the ratio is the loop's time over that of the
constants in force. Documents are of about 128 tokens.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models import delta_rule
from cupola.models.segments import Segments

CHUNKS = (16, 32, 64)
GROUPS = (16, 32, 64)
ROUNDS = 5


def inputs(batch: int, length: int, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Random r, log_decay, k, v, a and b."""
    r, log_decay, k, v, a, b = (torch.randn(batch, length, heads, width) for _ in range(6))
    direction = F.normalize(a, dim=-1)
    log_decay = -0.6 * torch.sigmoid(2 * log_decay - 1)
    tensors = [r, log_decay, 0.3 * k, v, -direction, direction * torch.sigmoid(b)]
    return [(x if i == 1 else x.to(dtype)).requires_grad_() for i, x in enumerate(tensors)]


def milliseconds(form: str, tensors: list[Tensor], segments: Segments) -> float:
    """CPU time of one pass; form: `loop`, or `chunk x group`."""
    begun = time.process_time()
    if form == "loop":
        y, _ = delta_rule.scan_reference(*tensors, segments)
        y.backward(torch.ones_like(y))
    else:
        chunk, group = map(int, form.split(" x "))
        with mock.patch.multiple(delta_rule, CHUNK=chunk, GROUP=group):
            y, _ = delta_rule.scan(*tensors, segments)
            y.backward(torch.ones_like(y))
    return 1000 * (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048, help="of a microbatch, at least one row")
    parser.add_argument("--length", type=int, action="append", help="of a row; default 256 and 2048")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    in_force = f"{delta_rule.CHUNK} x {delta_rule.GROUP}"
    forms = ["loop", *(f"{chunk} x {group}" for chunk in CHUNKS for group in GROUPS)]
    for length in options.length or (256, 2048):
        batch = max(1, options.tokens // length)
        tensors = inputs(batch, length, options.heads, options.head_width, dtype)
        for documents in (False, True):
            numbers = (torch.rand(batch, length) < 1 / 128).cumsum(dim=1) if documents else None
            times: dict[str, list[float]] = {form: [] for form in forms}
            for _ in range(ROUNDS + 1):
                for form in forms:
                    times[form].append(milliseconds(form, tensors, Segments(numbers)))
            medians = {form: statistics.median(values[1:]) for form, values in times.items()}
            row = "  ".join(f"{form}: {value:.0f}" for form, value in medians.items())
            kind = "documents" if documents else "whole"
            ratio = medians["loop"] / medians[in_force]
            print(f"{options.dtype} {kind:9s} {batch} x {length}:  {row}  ratio {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()
