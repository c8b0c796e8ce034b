import pytest
import torch

from cupola.optim.newton_schulz import COEFFICIENTS, iterate, iteration_dtype, orthogonalise

SHAPES = [(8, 8), (24, 8), (8, 24), (7, 8), (64, 96), (96, 256), (256, 96), (1, 5)]
"""Near and far from square, either way round: both forms of the iteration."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as the post writes it, for one matrix in fp64."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_is_the_iteration_of_the_post():
    given = [drawn(*shape) for shape in SHAPES]
    for matrix, found in zip(given, orthogonalise(given, torch.float32), strict=True):
        assert found.dtype == matrix.dtype
        assert relative(found, plain(matrix)) < 1e-4
        singular = torch.linalg.svdvals(found)
        assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.3


@pytest.mark.parametrize("shape", [(96, 96), (96, 256), (256, 96)])
def test_bf16_with_singular_values_of_many_sizes(shape):
    """As momenta have them. Without the fresh Gram matrix after three steps this is off by a factor."""
    left, _, right = torch.linalg.svd(drawn(*shape).double(), full_matrices=False)
    values = torch.logspace(0, -5, min(shape), dtype=torch.float64)
    matrix = (left * values @ right).float()
    assert relative(iterate(matrix, torch.bfloat16), plain(matrix)) < 0.15


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_a_batch_is_its_matrices(shape):
    """The form that a GPU gets."""
    batch = drawn(3, *shape)
    batch[1] *= 100
    for matrix, found in zip(batch, iterate(batch, torch.float32), strict=True):
        assert relative(found, plain(matrix)) < 1e-4


def test_nothing_from_nothing():
    assert orthogonalise([], torch.float32) == []
    assert torch.equal(iterate(torch.zeros(4, 8), torch.float32), torch.zeros(4, 8))


def test_dtype_is_chosen_for_the_processor():
    assert iteration_dtype(torch.device("cuda")) == torch.bfloat16
    assert iteration_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
