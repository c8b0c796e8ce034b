"""The nearest orthogonal matrix, roughly, by matrix products alone.

Steps X <- a X + b R X + c R^2 X, where R = X X^T, of the quintic Newton-Schulz iteration with the
coefficients of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): singular values come out near
1, not at it. Each step lifts small ones by up to a = 3.44; five steps are usual. It is the iteration of
`torch.optim.Muon`.

Guarantees: each matrix's result is its own, whatever else is in the list, and on CPU whatever the number of
threads.
Costs, in FLOPs for a matrix of r <= c and five steps:

- r > 2/3 c, as written: 5 (4 r^2 c + 2 r^3).
- else 8 r^2 c + 28 r^3, in Gram form: all factors are polynomials of R and commute, so that the iteration
  runs on R (r x r), R <- R P^2 with P = a + b R + c R^2, and X is multiplied once with the product of the P
  (Zhang et al. 2026, https://dao-ailab.github.io/blog/2026/gram-newton-schulz/). What rounding does to R's
  smallest eigenvalues is multiplied by a^2 at each step: in bf16 five steps in a row give nonsense where
  singular values are small. X and a new R = X X^T after the third step bring it back to the error of the
  iteration as written: against fp64, 0.041 to 0.088 where that has 0.045 to 0.090 (momenta of width 384).

All are in bf16 where the processor has it. A GPU gets all matrices of one shape as one batch; on CPU, where a
batch of products runs at half the speed of one product, each thread takes a matrix at a time.
"""

import torch
from torch import Tensor

from cupola.optim import threads

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
GRAM_STEPS = 3
"""Most steps in Gram form from one R to the next."""
GRAM_RATIO = 1.5
"""Columns to rows from which the Gram form has fewer FLOPs."""
SMALLEST_NORM = 1e-7


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16 where matrix products in it are fast: on a GPU, and on CPUs with instructions for it."""
    if device.type != "cpu":
        return torch.bfloat16
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def orthogonalise(matrices: list[Tensor], dtype: torch.dtype, steps: int = STEPS) -> list[Tensor]:
    """U S' V^T with all of S' near 1 for each matrix U S V^T.

    Args:
        matrices: (rows, columns) each, on one device, not necessarily of one shape.
        dtype: of the products.
        steps: of the iteration.

    Returns:
        In the order and dtype of the matrices.
    """
    if not matrices or matrices[0].device.type == "cpu":
        return threads.each(lambda matrix: iterate(matrix, dtype, steps), matrices)
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    found: list[Tensor] = list(matrices)
    for indices in by_shape.values():
        batch = iterate(torch.stack([matrices[i] for i in indices]), dtype, steps)
        for index, result in zip(indices, batch, strict=True):
            found[index] = result
    return found


def iterate(matrices: Tensor, dtype: torch.dtype, steps: int = STEPS) -> Tensor:
    """One matrix (rows, columns), or a batch of them (n, rows, columns)."""
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp_(min=SMALLEST_NORM)
    x = (matrices / norms).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    form = _gram_form if x.shape[-1] >= GRAM_RATIO * x.shape[-2] else _as_written
    x = form(x, steps)
    return (x.mT if tall else x).to(matrices.dtype)


def _as_written(x: Tensor, steps: int) -> Tensor:
    a = COEFFICIENTS[0]
    for _ in range(steps):
        x = _add_product(x, _polynomial(x @ x.mT), x, a)
    return x


def _gram_form(x: Tensor, steps: int) -> Tensor:
    a = COEFFICIENTS[0]
    for begun in range(0, steps, GRAM_STEPS):
        gram = x @ x.mT
        polynomial = _polynomial(gram)
        factor = polynomial.clone()
        # Only here is a I added: with a^steps I kept apart, its difference from the factor would cancel.
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        for _ in range(min(GRAM_STEPS, steps - begun) - 1):
            half = _add_product(gram, gram, polynomial, a)  # R P
            gram = _add_product(half, half, polynomial, a)  # R P^2
            polynomial = _polynomial(gram)
            factor = _add_product(factor, factor, polynomial, a)
        x = factor @ x
    return x


def _polynomial(gram: Tensor) -> Tensor:
    """b R + c R^2: P without its a I, which `_add_product` adds more exactly."""
    _, b, c = COEFFICIENTS
    return _add_product(gram, gram, gram, b, c)


def _add_product(addend: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """beta addend + alpha left right, of matrices or of batches."""
    multiply = torch.addmm if addend.ndim == 2 else torch.baddbmm
    return multiply(addend, left, right, beta=beta, alpha=alpha)
