"""The machine's own speed: the most floating-point operations a second that a plain matrix product reaches.

Model FLOP utilisation is the model's FLOPs a second over this. A measured peak and not a data sheet's: it
holds for this machine, this torch and these threads, and a share of it says how far the step is from what
torch can do here. Costs about `SECONDS`, once.
"""

import json
import time

import torch

from cupola.parallel.device import Precision, synchronize

SIZES = (512, 1024, 2048)
SIZES_ON_GPU = (4096, 8192)
SECONDS = 0.8
COPIED = 2**28
"""Bytes, more than any cache holds."""


def matmul_peak(precision: Precision, device: torch.device | str, seconds: float = SECONDS) -> float:
    """FLOP/s of the fastest square matrix product, with the threads that torch uses now.

    Args:
        seconds: how long to look, over all sizes; each is tried twice at least.
    """
    device = torch.device(device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    sizes = SIZES if device.type == "cpu" else SIZES_ON_GPU
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        torch.mm(left, right, out=out)  # the first call prepares the kernel
        begun = time.perf_counter()
        while True:
            before = time.perf_counter()
            torch.mm(left, right, out=out)
            synchronize(device)
            after = time.perf_counter()
            best = max(best, 2 * size**3 / (after - before))
            if after - begun > seconds / len(sizes):
                break
    return best


def copy_bandwidth(device: torch.device | str = "cpu", seconds: float = SECONDS / 2) -> float:
    """Bytes a second that a copy of `COPIED` bytes reads and writes together, at its fastest."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds or not best:
        before = time.perf_counter()
        target.copy_(source)
        synchronize(torch.device(device))
        best = max(best, 2 * COPIED / (time.perf_counter() - before))
    return best


def main() -> None:
    """This machine's CPU, as JSON: what `plan.host` asks for in a process of its own."""
    found = {
        "fp32": matmul_peak("fp32", "cpu"),
        "bf16": matmul_peak("bf16", "cpu"),
        "bandwidth": copy_bandwidth(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
