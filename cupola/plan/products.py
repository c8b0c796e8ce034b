"""Seconds of a matrix product on a device, by its shape."""

import functools
import math

from cupola.plan.causes import Causes
from cupola.plan.hardware import Hardware, Precision

ROWS, COLUMNS = 128, 256
"""Of a tile: what one core works on at a time, in libraries of the last years."""
GRAIN = 64
"""Rows that a core takes at once: fewer cost as many."""
BYTES: dict[Precision, float] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": 0.5}


@functools.cache
def _wave(peak: float, attainable: float, units: int, k: float, causes: Causes) -> float:
    """Seconds of a wave of tiles."""
    return 2 * ROWS * COLUMNS * k * units / (peak * attainable) + causes.tile


def product(
    m: float, n: float, k: float, hardware: Hardware, precision: Precision, causes: Causes, count: float = 1
) -> float:
    """Of `count` products (m, k) by (k, n) in one kernel.

    Tiles go to the device's units in waves; the last one is not full (`tail`), and each has a beginning and
    an end outside its inner loop (`tile`), so that a short inner side costs, and all the more the faster the
    device is. At least what memory takes to bring the factors and take the result.
    """
    if m <= 0 or n <= 0 or k <= 0 or count <= 0:
        return 0.0
    whole = math.ceil(m / GRAIN) * GRAIN * max(n, GRAIN) / (ROWS * COLUMNS)
    waves = count * whole / hardware.units + causes.tail
    figures = hardware.flops(precision), hardware.attained(precision), hardware.units
    size = BYTES[precision]
    moved = count * (size * (m * k + n * k) + max(2.0, size) * m * n)
    return max(waves * _wave(*figures, k, causes), moved / (hardware.bandwidth * causes.stream))


def three(
    m: float, n: float, k: float, hardware: Hardware, precision: Precision, causes: Causes, count: float = 1
) -> tuple[float, float, float]:
    """Of a linear map: its forward pass, the gradient of its input, that of its weight."""
    return (
        product(m, n, k, hardware, precision, causes, count),
        product(m, k, n, hardware, precision, causes, count),
        product(n, k, m, hardware, precision, causes, count),
    )
