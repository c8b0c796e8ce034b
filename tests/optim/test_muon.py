import pytest
import torch

from cupola.optim.muon import COEFFICIENTS, Muon, iteration_dtype, orthogonalise

SHAPES = [(8, 8), (24, 8), (8, 24), (24, 8), (1, 5)]


def matrices(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(seed: int) -> list[torch.Tensor]:
    return [matrix.detach() * 0.1 for matrix in matrices(seed)]


def muon(parameters, dtype, decay=0.1) -> Muon:
    return Muon([{"params": parameters, "role": "matrix", "weight_decay": decay}], lr=0.02, dtype=dtype)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.oracle
def test_is_torchs_muon():
    """Step by step: the momentum to fp32's rounding, the update to that of two ways through bf16."""
    ours, theirs = matrices(), matrices()
    optimizer = muon(ours, torch.bfloat16)
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(1, 6):
        before = [p.detach().clone() for p in ours]
        for left, right, gradient in zip(ours, theirs, gradients(seed), strict=True):
            right.data.copy_(left.data)
            left.grad, right.grad = gradient, gradient.clone()
        optimizer.step()
        reference.step()
        for left, right, start in zip(ours, theirs, before, strict=True):
            torch.testing.assert_close(
                optimizer.state[left]["momentum"],
                reference.state[right]["momentum_buffer"],
                rtol=1e-6,
                atol=1e-8,
            )
            assert relative(left - start, right - start) < 0.05


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as the post writes it, for one matrix in fp64."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_three_steps_in_plain_words():
    """The whole update in fp64, one matrix after the other: tight where the comparison above is not."""
    ours, exact = matrices(), [p.detach().double() for p in matrices()]
    averages = [torch.zeros_like(p) for p in exact]
    optimizer = muon(ours, torch.float32)
    for seed in (1, 2, 3):
        for index, gradient in enumerate(gradients(seed)):
            ours[index].grad = gradient
            averages[index] = 0.95 * averages[index] + 0.05 * gradient.double()
            ahead = 0.05 * gradient.double() + 0.95 * averages[index]
            size = 0.2 * max(gradient.shape) ** 0.5
            exact[index] = exact[index] * (1 - 0.02 * 0.1) - 0.02 * size * plain(ahead)
        optimizer.step()
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_orthogonalise(shape):
    batch = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    found = orthogonalise(batch, torch.float32)
    assert found.shape == batch.shape
    for matrix, result in zip(batch, found, strict=True):
        assert relative(result, plain(matrix)) < 1e-4
        singular = torch.linalg.svdvals(result)
        assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3


def test_size_of_an_update_matches_adamws():
    """Root mean square near 0.2 of the learning rate, whatever the shape (Liu et al. 2025)."""
    for shape in ((16, 16), (64, 16), (16, 64)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        muon([parameter], torch.float32).step()
        assert float(parameter.square().mean().sqrt() / 0.02) == pytest.approx(0.2, rel=0.2)


def test_matrices_of_one_shape_do_not_mix():
    together, alone = matrices(), matrices()
    for parameter, gradient in zip(together, gradients(1), strict=True):
        parameter.grad = gradient
    muon(together, torch.float32).step()
    for parameter, gradient in zip(alone, gradients(1), strict=True):
        parameter.grad = gradient
        muon([parameter], torch.float32).step()
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 24), (5, 24, 8)])
def test_a_batch_of_matrices_is_its_matrices_one_by_one(shape):
    """A mixture's experts, with another mixture of the same shape beside them."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(2)]
    slices = [[torch.nn.Parameter(m.detach().clone()) for m in batch] for batch in batches]
    together = muon(batches, torch.float32)
    alone = muon([m for batch in slices for m in batch], torch.float32)
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        for batch, members in zip(batches, slices, strict=True):
            batch.grad = torch.randn(shape, generator=generator)
            batch.grad[1] *= 100  # an expert's size of gradient is no other's business
            for matrix, gradient in zip(members, batch.grad, strict=True):
                matrix.grad = gradient.clone()
        together.step()
        alone.step()
    for batch, members in zip(batches, slices, strict=True):
        torch.testing.assert_close(batch.detach(), torch.stack([m.detach() for m in members]))


def test_decay_is_decoupled():
    parameter = torch.nn.Parameter(torch.full((4, 4), 2.0))
    parameter.grad = torch.zeros(4, 4)
    muon([parameter], torch.float32, decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 2.0 * (1 - 0.02 * 0.5)))


def test_parameters_without_a_gradient_are_left_alone():
    one, other = matrices()[:2]
    one.grad = torch.ones_like(one)
    before = other.detach().clone()
    optimizer = muon([one, other], torch.float32)
    optimizer.step()
    assert torch.equal(other, before)
    assert other not in optimizer.state


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match="2-D"):
        muon([torch.nn.Parameter(torch.zeros(3))], None)


def test_dtype_is_chosen_for_the_processor():
    assert iteration_dtype(torch.device("cuda")) == torch.bfloat16
    assert iteration_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
