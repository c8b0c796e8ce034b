"""The machine's own speed: the best that a plain matrix product reaches, in FLOP/s."""

import time

import torch

SIZES = (1024, 2048)
SECONDS = 0.5


def matmul_peak(precision: str, device: str, sizes: tuple[int, ...] = SIZES) -> float:
    """FLOP/s of the fastest square torch.mm among `sizes`, each repeated for half a second, best taken."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    best = 0.0
    for size in sizes:
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        repeat = 1 if device == "cpu" else 20
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            begun = time.perf_counter()
            for _ in range(repeat):
                left @ right
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, repeat * 2 * size**3 / (time.perf_counter() - begun))
    return best
