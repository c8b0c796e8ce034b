"""What an optimizer keeps of a parameter, in bytes, without torch; tests hold it equal to `optim`'s own."""

import math

from cupola.models.table.declaration import Parameter
from cupola.recipe.schema import Optimizer

FP32, BF16 = 4, 2


def rotated_sides(shape: tuple[int, ...], largest: int, ratio: float) -> tuple[bool, bool]:
    """Whether SOAP rotates rows and columns of a matrix.

    A side is not if it is longer than `largest` (`max_precond_dim` of the authors' code), or more than
    `ratio` times as long as the other: each gradient then says little about it (its rank is that of the
    shorter side), while its basis costs most. The paper's one-sided variant, which rotates the shorter side
    only, is a ratio of 1.
    """
    rows, columns = shape[-2:]
    return (
        1 < rows <= min(largest, ratio * columns),
        1 < columns <= min(largest, ratio * rows),
    )


def state_bytes(parameter: Parameter, settings: Optimizer) -> int:
    """Bytes that the optimizer keeps of a whole parameter: AdamW two moments in fp32, Muon one of a matrix,
    SOAP two and the covariance and basis of each rotated side."""
    if parameter.role == "buffer":
        return 0
    if parameter.role != "matrix" or settings.kind == "adamw":
        return 2 * FP32 * parameter.size
    if settings.kind == "muon":
        return FP32 * parameter.size
    *batch, rows, columns = parameter.shape
    sides = rotated_sides(parameter.shape, settings.largest_preconditioned, settings.one_sided_above)
    covariances = sum(side**2 for side, rotated in zip((rows, columns), sides, strict=True) if rotated)
    numbers = 2 * parameter.size + 2 * math.prod(batch) * covariances
    return numbers * (FP32 if settings.state_dtype == "fp32" else BF16)
