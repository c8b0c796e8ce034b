"""The machine's own speed: the most floating-point operations a second that a plain matrix product reaches.

Model FLOP utilisation is the model's FLOPs a second over this. A measured peak and not a data sheet's: it
holds for this machine, this torch and these threads, and a share of it says how far the step is from what
torch can do here. Costs about `SECONDS`, once.
"""

import time

import torch

from cupola.parallel.device import Precision, synchronize

SIZES = (512, 1024, 2048)
SIZES_ON_GPU = (4096, 8192)
SECONDS = 0.8


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
