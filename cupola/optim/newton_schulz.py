"""The nearest orthogonal matrix, roughly, by matrix products alone.

Steps X <- a X + b R X + c R^2 X, where R = X X^T: odd quintics of the singular values. Two methods:

- `polar_express`: at each step another quintic, the best for what the one before it left
  (`cupola.optim.polynomials`), begun at the bound on the largest singular value that R's norm gives,
  sigma <= ||R||_F^(1/2), which is nearer than ||X||_F and costs nothing (Grishina et al. 2025, "CANS",
  https://arxiv.org/abs/2506.10935).
- `quintic`: one quintic at all steps, five of them usual, as Jordan et al. 2024
  (https://kellerjordan.github.io/posts/muon/) and `torch.optim.Muon` have it; singular values come out
  between 0.68 and 1.13, small ones are lifted by up to 3.44 at each step.

Guarantees: each matrix's result is its own, whatever else is in the list, and on CPU whatever the number of
threads.
Costs, in FLOPs for a matrix of r <= c and n steps:

- r > 2/3 c, as written: n (4 r^2 c + 2 r^3).
- else in Gram form, 4 r^2 c + 10 r^3 for two steps: all factors are polynomials of R and commute, so that
  both run on R (r x r), R <- R P^2 with P = a + b R + c R^2, and X is multiplied once with the product of
  their P (Zhang et al. 2026, https://dao-ailab.github.io/blog/2026/gram-newton-schulz/). What rounding does
  to R's smallest eigenvalues is multiplied by a^2 at each step, hence a new R = X X^T after two: after three
  of `polar_express` in bf16, singular values came out as large as 1.5, after four as 10.

Of products that are symmetric, all but those with X, a CPU computes the lower half, from 384 rows: 0.86 of
the time at 384, 0.73 at 768. All are in bf16 where the processor has it. A GPU gets all matrices of one shape
as one batch; on CPU, where a batch of products runs at half the speed of one product, each thread takes a
matrix at a time.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from cupola.optim import threads
from cupola.optim.polynomials import JORDAN, Quintic, polar_express
from cupola.recipe.schema import NewtonSchulz

STEPS: dict[NewtonSchulz, int] = {"polar_express": 3, "quintic": 5}
"""By default."""
GRAM_STEPS = 2
"""Most steps in Gram form from one R to the next."""
GRAM_RATIO = 1.5
"""Columns to rows from which the Gram form has fewer FLOPs."""
SMALLEST_NORM = 1e-7
STRIP_ROWS = 128
MOST_STRIPS = 4
"""Of a symmetric product: below three strips of so many rows, its half takes as long as the whole."""


def iteration_dtype(device: torch.device) -> torch.dtype:
    """bf16 where matrix products in it are fast: on a GPU, and on CPUs with instructions for it."""
    if device.type != "cpu":
        return torch.bfloat16
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def orthogonalise(
    matrices: list[Tensor],
    dtype: torch.dtype,
    method: NewtonSchulz = "polar_express",
    steps: int | None = None,
) -> list[Tensor]:
    """U S' V^T with all of S' near 1 for each matrix U S V^T.

    Args:
        matrices: (rows, columns) each, on one device, not necessarily of one shape.
        dtype: of the products.
        steps: of the iteration; by default the method's.

    Returns:
        In the order of the matrices, in `dtype`.
    """
    if not matrices or matrices[0].device.type == "cpu":
        return threads.each(lambda matrix: iterate(matrix, dtype, method, steps), matrices)
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    found: list[Tensor] = list(matrices)
    for indices in by_shape.values():
        batch = iterate(torch.stack([matrices[i] for i in indices]), dtype, method, steps)
        for index, result in zip(indices, batch, strict=True):
            found[index] = result
    return found


def iterate(
    matrices: Tensor, dtype: torch.dtype, method: NewtonSchulz = "polar_express", steps: int | None = None
) -> Tensor:
    """One matrix (rows, columns), or a batch of them (n, rows, columns); the result is in `dtype`."""
    count = steps or STEPS[method]
    norms = torch.linalg.matrix_norm(matrices, keepdim=True).clamp_(min=SMALLEST_NORM)
    x = (matrices / norms).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    gram = _symmetric(x, x.mT)
    if method == "polar_express":
        bounds = torch.linalg.matrix_norm(gram, keepdim=True, dtype=torch.float32).clamp_(min=SMALLEST_NORM)
        x, gram = x / bounds.sqrt().to(dtype), gram / bounds.to(dtype)
    quintics = polar_express(count) if method == "polar_express" else (JORDAN,) * count
    form = _gram_form if x.shape[-1] >= GRAM_RATIO * x.shape[-2] else _as_written
    x = form(x, gram, quintics)
    return x.mT if tall else x


def _as_written(x: Tensor, gram: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    for index, (a, b, c) in enumerate(quintics):
        if index:
            gram = _symmetric(x, x.mT)
        x = _add_product(x, _symmetric(gram, gram, gram, b, c), x, a)
    return x


def _gram_form(x: Tensor, gram: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    for begun in range(0, len(quintics), GRAM_STEPS):
        if begun:
            gram = _symmetric(x, x.mT)
        x = _product_of_factors(gram, quintics[begun : begun + GRAM_STEPS]) @ x
    return x


def _product_of_factors(gram: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """The product of P = a + b R + c R^2 over the steps, R <- R P^2 from one to the next."""
    (a, b, c), *rest = quintics
    polynomial = _symmetric(gram, gram, gram, b, c)
    factor = polynomial.clone()
    # Only here is a I added: with a^steps I kept apart, its difference from the factor would cancel.
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    for next_a, b, c in rest:
        half = _symmetric(gram, polynomial, gram, a)  # R P
        gram = _symmetric(half, polynomial, half, a)  # R P^2
        a, polynomial = next_a, _symmetric(gram, gram, gram, b, c)
        factor = _symmetric(factor, polynomial, factor, a)
    return factor


def _symmetric(
    left: Tensor, right: Tensor, addend: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """beta addend + alpha left right, where that is symmetric: (r, r), or a batch of them."""
    rows = left.shape[-2]
    strips = min(MOST_STRIPS, rows // STRIP_ROWS)
    if left.ndim > 2 or left.device.type != "cpu" or strips < 3:
        return left @ right if addend is None else _add_product(addend, left, right, beta, alpha)
    found = left.new_empty(rows, rows)
    edges = [rows * index // strips for index in range(strips + 1)]
    for start, end in itertools.pairwise(edges):
        below = found[start:end, :end]
        if addend is None:
            torch.mm(left[start:end], right[:, :end], out=below)
        else:
            own = addend[start:end, :end]
            torch.addmm(own, left[start:end], right[:, :end], beta=beta, alpha=alpha, out=below)
        found[:start, start:end] = found[start:end, :start].mT
    return found


def _add_product(addend: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """beta addend + alpha left right, of matrices or of batches."""
    multiply = torch.addmm if addend.ndim == 2 else torch.baddbmm
    return multiply(addend, left, right, beta=beta, alpha=alpha)
