"""Shampoo's covariances of a matrix, and bases that follow their eigenvectors: what SOAP rotates into.

For a gradient G of r rows and c columns, L is a moving average of G G^T (r, r) and R of G^T G (c, c); the
bases Q_L and Q_R hold their eigenvectors as columns, by falling eigenvalue. All functions take batches of
matrices of one shape.

Guarantees: a basis is orthogonal to 1e-5 in fp32, however ill-conditioned the covariance.
Costs, for a side of length d: `first_bases` a decomposition of a symmetric matrix, about 9 d^3 FLOPs, once;
`next_basis` a product and a QR decomposition, d^3 (2 + 4/3 + 4/3), every so many steps.
Trade-off: the QR is Householder's, from LAPACK. CholeskyQR2, by matrix products alone, was measured at twice
its time on CPU (384 and 1024 rows), and fails outright where a covariance is singular, as that of a matrix
with more rows than columns is at first.
"""

import torch
from torch import Tensor


def rotate(matrices: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Q_L^T X Q_R; None leaves a side as it is."""
    if left is not None:
        matrices = left.mT @ matrices
    return matrices if right is None else matrices @ right


def rotate_back(matrices: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Q_L X Q_R^T, the way back."""
    if left is not None:
        matrices = left @ matrices
    return matrices if right is None else matrices @ right.mT


def accumulate(covariance: Tensor, matrices: Tensor, decay: float) -> None:
    """L <- decay L + (1 - decay) X X^T, in place; for R give the transposes."""
    covariance.baddbmm_(matrices, matrices.mT, beta=decay, alpha=1 - decay)


def first_bases(matrices: Tensor, sides: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Eigenvectors of X X^T and X^T X by falling eigenvalue, for the sides that are rotated.

    Those of a longer side follow from the shorter one's, V: X V has orthogonal columns in the right order,
    and a QR decomposition completes them to a basis. That takes a quarter of the time of decomposing the
    larger covariance, which is singular anyway.

    Args:
        matrices: (n, rows, columns), any floating dtype.

    Returns:
        (n, rows, rows) and (n, columns, columns) in fp32.
    """
    matrices = matrices.float()
    rows, columns = matrices.shape[-2:]
    if rows < columns:
        right, left = first_bases(matrices.mT, (sides[1], sides[0]))
        return left, right
    left, right = None, None
    if sides[1] or (sides[0] and rows > columns):
        right = _eigenvectors(matrices.mT @ matrices)
    if sides[0] and rows == columns:
        left = _eigenvectors(matrices @ matrices.mT)
    elif sides[0]:
        left = torch.linalg.qr(rotate(matrices, None, right), mode="complete").Q
    return left, right if sides[1] else None


def _eigenvectors(covariance: Tensor) -> Tensor:
    try:
        vectors = torch.linalg.eigh(covariance).eigenvectors
    except torch.linalg.LinAlgError:  # fp32 may fail to converge, on GPUs above all
        vectors = torch.linalg.eigh(covariance.double()).eigenvectors.float()
    return vectors.flip(-1)


def next_basis(covariance: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step of power iteration, made orthogonal again (Vyas et al. 2024, algorithm 4).

    The columns are put in the order of their estimated eigenvalues first: an orthogonal iteration converges
    from the largest down, and QR changes a column only by those before it.

    Args:
        covariance, basis: (n, d, d), any floating dtype; it is that of the product.

    Returns:
        The new basis, (n, d, d), in fp32 as its decomposition is; and the order (n, d): column i of the new
        basis follows on column order[i] of the old one.
    """
    product = (covariance @ basis).float()
    order = (basis * product).sum(-2).argsort(dim=-1, descending=True, stable=True)
    product = product.gather(-1, order[:, None, :].expand_as(product))
    return torch.linalg.qr(product).Q, order


def share_out(costs: list[float], turns: int) -> list[int]:
    """A turn for each cost, so that no turn costs much more than another.

    The largest first, each to the turn with least so far: at most 4/3 of the best split, or one item.
    """
    loads = [0.0] * turns
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        turn = loads.index(min(loads))
        loads[turn] += costs[index]
        chosen[index] = turn
    return chosen
