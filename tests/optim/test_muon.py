import pytest
import torch

from cupola.optim.muon import Muon
from tests.optim.test_newton_schulz import plain, relative

SHAPES = [(8, 8), (24, 8), (8, 24), (24, 8), (1, 5), (7, 8)]


def matrices(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(seed: int) -> list[torch.Tensor]:
    return [matrix.detach() * 0.1 for matrix in matrices(seed)]


def muon(parameters, dtype, decay=0.1, nesterov=True, fused=None, steps=5) -> Muon:
    group = {"params": parameters, "role": "matrix", "weight_decay": decay, "fused": fused or {}}
    return Muon(
        [group], lr=0.02, nesterov=nesterov, newton_schulz="quintic", newton_schulz_steps=steps, dtype=dtype
    )


@pytest.mark.oracle
@pytest.mark.parametrize(("nesterov", "steps"), [(True, 5), (False, 5), (True, 1), (True, 4)])
@pytest.mark.parametrize("exact", [True, False])
def test_is_torchs_muon(monkeypatch, exact, nesterov, steps):
    """Step by step. Torch's iteration is in bf16 only: with its cast taken out, both are fp32's to rounding;
    as it is, the updates are those of two ways through bf16."""
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours, theirs = matrices(), matrices()
    dtype = torch.float32 if exact else torch.bfloat16
    optimizer = muon(ours, dtype, nesterov=nesterov, steps=steps)
    reference = torch.optim.Muon(
        theirs,
        lr=0.02,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=nesterov,
        ns_steps=steps,
        adjust_lr_fn="match_rms_adamw",
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
            assert relative(left - start, right - start) < (1e-4 if exact else 0.05)


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


@pytest.mark.parametrize(("rows", "experts"), [((8, 8, 8), None), ((16, 4, 4), None), ((24, 24), 3)])
def test_fused_matrices_get_what_their_parts_get_alone(rows, experts):
    """Query, key and value in one, with and without grouped queries; gate and up of a mixture's experts."""
    shape = (sum(rows), 8) if experts is None else (experts, sum(rows), 8)
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(shape, generator=generator))
    other = torch.nn.Parameter(torch.randn(shape, generator=generator))  # of the same shape, and one matrix
    parts = [torch.nn.Parameter(p.detach().clone()) for p in whole.split(list(rows), dim=-2)]
    together = muon([whole, other], torch.float32, fused={whole: rows})
    alone = muon(parts, torch.float32)
    for _ in range(2):
        other.grad = torch.randn(shape, generator=generator)
        whole.grad = torch.randn(shape, generator=generator)
        whole.grad[..., : rows[0], :] *= 100  # as the gradient of values beside that of queries
        for part, gradient in zip(parts, whole.grad.split(list(rows), dim=-2), strict=True):
            part.grad = gradient.clone()
        together.step()
        alone.step()
    assert torch.equal(whole, torch.cat(list(parts), dim=-2))
    as_one = muon([torch.nn.Parameter(whole.detach().clone())], torch.float32)
    before = as_one.param_groups[0]["params"][0].detach().clone()
    as_one.param_groups[0]["params"][0].grad = whole.grad
    as_one.step()
    after_one = as_one.param_groups[0]["params"][0] - before
    before = whole.detach().clone()
    fresh = muon([whole], torch.float32, fused={whole: rows})
    fresh.step()
    assert relative(whole.detach() - before, after_one.detach()) > 0.1


def test_rows_of_fused_matrices_must_fill_it():
    parameter = torch.nn.Parameter(torch.zeros(8, 4))
    with pytest.raises(ValueError, match="6 rows, not 8"):
        muon([parameter], None, fused={parameter: (3, 3)})


def test_the_number_of_threads_changes_no_bit():
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parameters = matrices()
            optimizer = muon(parameters, torch.float32)
            for seed in (1, 2):
                for parameter, gradient in zip(parameters, gradients(seed), strict=True):
                    parameter.grad = gradient
                optimizer.step()
            assert torch.get_num_threads() == count
            found.append(parameters)
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
