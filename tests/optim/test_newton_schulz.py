import pytest
import torch

from cupola.optim.newton_schulz import iterate, iteration_dtype, orthogonalise
from cupola.optim.polynomials import JORDAN, polar_express

SHAPES = [(8, 8), (24, 8), (8, 24), (7, 8), (64, 96), (96, 256), (256, 96), (1, 5)]
"""Near and far from square, either way round: both forms of the iteration."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def plain(matrix, method: str = "quintic", steps: int = 5, dtype=torch.float64) -> torch.Tensor:
    """The iteration as the papers write it, for one matrix."""
    x = matrix.double() / matrix.double().norm()
    if method == "polar_express":
        x /= (x @ x.T).norm().sqrt()
    x = x.to(dtype)
    for a, b, c in polar_express(steps) if method == "polar_express" else (JORDAN,) * steps:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


METHODS = [("quintic", 5), ("quintic", 3), ("polar_express", 2), ("polar_express", 3), ("polar_express", 4)]


@pytest.mark.parametrize(("method", "steps"), METHODS)
def test_is_the_iteration_of_the_papers(method, steps):
    given = [drawn(*shape) for shape in SHAPES]
    for matrix, found in zip(given, orthogonalise(given, torch.float32, method, steps), strict=True):
        assert relative(found, plain(matrix, method, steps)) < 2e-4


@pytest.mark.parametrize(("method", "least", "most"), [("quintic", 0.5, 1.3), ("polar_express", 0.7, 1.27)])
def test_singular_values_come_out_near_one(method, least, most):
    """With the method's own number of steps."""
    for shape in SHAPES:
        singular = torch.linalg.svdvals(iterate(drawn(*shape), torch.float32, method))
        assert least < float(singular.min()) <= float(singular.max()) < most


@pytest.mark.parametrize("shape", [(96, 96), (96, 256), (256, 96), (400, 400), (400, 1000)])
@pytest.mark.parametrize(("method", "steps"), METHODS)
def test_bf16_with_singular_values_of_many_sizes(shape, method, steps):
    """As momenta have them; small ones are lifted with the rounding of the large. Without a fresh Gram matrix
    after two steps this is off by a factor."""
    left, _, right = torch.linalg.svd(drawn(*shape).double(), full_matrices=False)
    values = torch.logspace(0, -5, min(shape), dtype=torch.float64)
    matrix = (left * values @ right).float()
    exact = plain(matrix, method, steps)
    rounding = relative(plain(matrix, method, steps, torch.bfloat16), exact)
    found = relative(iterate(matrix, torch.bfloat16, method, steps), exact)
    assert found < max(0.05, 1.3 * rounding) < 0.5


def test_one_direction_alone_does_not_overflow():
    """Rank 1: the norm of the Gram matrix is the largest singular value, and rounding may lie above it."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(size, generator=generator) for size in (300, 700))
        matrix = torch.outer(left, right)
        found = iterate(matrix, torch.bfloat16, "polar_express")
        assert 0.7 < float(torch.linalg.matrix_norm(found.float(), ord=2)) < 1.3


@pytest.mark.parametrize("steps", [3, 4])
@pytest.mark.parametrize("shape", [(48, 64), (384, 1024), (700, 384), (768, 2048)])
def test_low_rank_and_noise_do_not_overflow(shape, steps):
    """A few large singular values, all alike, and many below what bf16 tells apart."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(size, generator=generator) for size in ((shape[0], 4), (4, shape[1])))
        matrix = left @ right + 1e-3 * torch.randn(shape, generator=generator)
        found = iterate(matrix, torch.bfloat16, "polar_express", steps)
        assert float(torch.linalg.matrix_norm(found.float(), ord=2)) < 1.45


@pytest.mark.parametrize("rows", [384, 500, 521])
def test_symmetric_products_are_computed_by_half(rows):
    """In strips, from 384 rows."""
    for columns in (rows, 2 * rows):
        matrix = drawn(rows, columns)
        found = iterate(matrix, torch.float32, "polar_express")
        assert relative(found, plain(matrix, "polar_express", 3)) < 1e-4


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
@pytest.mark.parametrize("method", ["quintic", "polar_express"])
def test_a_batch_is_its_matrices(shape, method):
    """The form that a GPU gets."""
    batch = drawn(3, *shape)
    batch[1] *= 100
    for matrix, found in zip(batch, iterate(batch, torch.float32, method, 3), strict=True):
        assert relative(found, plain(matrix, method, 3)) < 1e-4


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_size_does_not_matter(size):
    matrix = drawn(16, 40)
    expected = iterate(matrix, torch.float32)
    assert relative(iterate(matrix * size, torch.float32), expected) < (1e-4 if size > 1 else 1)


def test_nothing_from_nothing():
    assert orthogonalise([], torch.float32) == []
    assert torch.equal(iterate(torch.zeros(4, 8), torch.float32), torch.zeros(4, 8))


def test_dtype_is_chosen_for_the_processor():
    assert iteration_dtype(torch.device("cuda")) == torch.bfloat16
    assert iteration_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
