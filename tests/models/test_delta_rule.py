"""The chunked generalised delta rule against its formula in fp64 and flash-linear-attention's."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models import delta_rule
from cupola.models.delta_rule import CHUNK, scan, scan_reference, step
from cupola.models.segments import Segments

WHOLE = Segments(None)
NAMES = ["y", "state", "d_r", "d_log_decay", "d_k", "d_v", "d_a", "d_b", "d_state"]


def inputs(
    batch: int, length: int, heads: int, width: int = 16, parallel: bool = False, seed: int = 0
) -> list[Tensor]:
    """r, log_decay, k, v, a, b in fp64; `parallel`: keys that hardly differ, decays of both extremes."""
    generator = torch.Generator().manual_seed(seed + length)

    def normal() -> Tensor:
        return torch.randn(batch, length, heads, width, dtype=torch.float64, generator=generator)

    spread, shift = (6, 4) if parallel else (2, -1)
    log_decay = -0.606531 * torch.sigmoid(normal() * spread + shift)
    direction = F.normalize(normal(), dim=-1)
    if parallel:
        direction = F.normalize(direction[:, :1] + 0.05 * normal(), dim=-1)
    rate = torch.sigmoid(normal() + (3 if parallel else 0))
    return [normal(), log_decay, 0.3 * normal(), normal(), -direction, direction * rate]


def random_state(batch: int, heads: int, width: int = 16) -> Tensor:
    return torch.randn(
        batch, heads, width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(9)
    )


def documents(batch: int, length: int, mean: float) -> Segments:
    generator = torch.Generator().manual_seed(int(mean))
    return Segments((torch.rand(batch, length, generator=generator) < 1 / mean).cumsum(dim=1))


def outcomes(function, tensors, segments, state, dtype=torch.float64) -> list[Tensor]:
    """Outputs and gradients of a function with scan's signature; a fixed random weighting is the loss."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (*tensors, state)]
    y, final = function(*leaves[:6], segments, leaves[6])
    generator = torch.Generator().manual_seed(4)
    for_y, for_state = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in (y, final)
    )
    ((y * for_y).sum() + (final * for_state).sum()).backward()
    return [y.detach(), final.detach(), *(x.grad for x in leaves)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the largest entry expected."""
    for name, got, want in zip(NAMES, found, expected, strict=True):
        error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-9)
        assert error < tolerance, f"{name}: {float(error):.1e}"


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mean", [None, 3.0, 25.0])
@pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 5 * CHUNK - 3])
def test_values_and_gradients_equal_the_formula(length, mean, parallel):
    tensors, state = inputs(2, length, 2, parallel=parallel), random_state(2, 2)
    segments = WHOLE if mean is None else documents(2, length, mean)
    expected = outcomes(scan_reference, tensors, segments, state)
    assert_close(outcomes(scan, tensors, segments, state), expected, 1e-11)
    assert_close(outcomes(scan, tensors, segments, state, torch.float32), expected, 1e-5)


@pytest.mark.parametrize("group", [1, 5, 12, 1000])
@pytest.mark.parametrize("mean", [None, 25.0])
def test_groups_of_any_size_give_the_same(group, mean, monkeypatch):
    monkeypatch.setattr(delta_rule, "GROUP", group)
    tensors, state = inputs(3, 4 * CHUNK + 2, 2), random_state(3, 2)
    segments = WHOLE if mean is None else documents(3, 4 * CHUNK + 2, mean)
    expected = outcomes(scan_reference, tensors, segments, state)
    assert_close(outcomes(scan, tensors, segments, state), expected, 1e-11)


def test_wide_heads_with_keys_all_alike_stay_exact():
    """The hardest case for (I - A)^-1: every key the same, learnt at full rate, hardly any decay."""
    r, log_decay, k, v, a, _ = inputs(1, 4 * CHUNK, 1, width=64)
    a = F.normalize(a[:, :1].expand_as(a) + 1e-3 * a, dim=-1)
    tensors, state = [r, 1e-3 * log_decay, k, v, a, -a], random_state(1, 1, 64)
    expected = outcomes(scan_reference, tensors, WHOLE, state)
    assert_close(outcomes(scan, tensors, WHOLE, state, torch.float32), expected, 1e-5)


def test_the_strongest_decay_everywhere_stays_exact():
    r, log_decay, k, v, a, b = inputs(1, 3 * CHUNK, 2)
    tensors, state = [r, torch.full_like(log_decay, -0.606531), k, v, a, b], random_state(1, 2)
    expected = outcomes(scan_reference, tensors, WHOLE, state)
    assert_close(outcomes(scan, tensors, WHOLE, state, torch.float32), expected, 1e-5)


def test_packed_documents_equal_each_alone_gradients_too():
    lengths = [1, 40, 3, 64, 21]
    tensors = [x.float() for x in inputs(1, sum(lengths), 2)]
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = [x.clone().requires_grad_() for x in tensors]
    y, last = scan(*packed, Segments(numbers))
    (y * y).sum().backward()
    for columns in torch.arange(sum(lengths)).split(lengths):
        alone = [x[:, columns].clone().requires_grad_() for x in tensors]
        y_alone, state = scan(*alone, WHOLE)
        (y_alone * y_alone).sum().backward()
        torch.testing.assert_close(y[:, columns], y_alone, rtol=0, atol=1e-5)
        for whole, part in zip(packed, alone, strict=True):
            scale = float(whole.grad.abs().max())
            torch.testing.assert_close(whole.grad[:, columns], part.grad, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("before", [1, 20, CHUNK, 70])
def test_the_state_is_handed_over_to_single_steps(before):
    tensors = [x.float() for x in inputs(2, 100, 2)]
    whole, final = scan(*tensors, WHOLE)
    _, state = scan(*(x[:, :before] for x in tensors), WHOLE)
    for t in range(before, 100):
        y, state = step(*(x[:, t] for x in tensors), state)
        torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_bf16_inputs_lose_no_more_than_their_own_rounding(parallel):
    tensors = inputs(1, 200, 2, width=64, parallel=parallel)
    exact = [x if i == 1 else x.bfloat16().double() for i, x in enumerate(tensors)]
    rounded = [x.float() if i == 1 else x.bfloat16() for i, x in enumerate(tensors)]
    for x in rounded:
        x.requires_grad_()
    for x in exact:
        x.requires_grad_()
    weights = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y, _ = scan(*rounded, WHOLE)
    assert y.dtype == torch.bfloat16
    y.backward(weights)
    expected, _ = scan_reference(*exact, WHOLE)
    expected.backward(weights.double())
    for got, want in zip([y, *(x.grad for x in rounded)], [expected, *(x.grad for x in exact)], strict=True):
        assert (got.double() - want).norm() / want.norm() < 0.01


def test_nothing_is_kept_without_gradients():
    tensors = [x.float() for x in inputs(1, 64, 2)]
    with torch.no_grad():
        y, state = scan(*tensors, WHOLE)
    assert not y.requires_grad
    assert y.dtype == state.dtype == torch.float32


@pytest.mark.oracle
def test_equals_flash_linear_attentions_recurrence():
    """Its q is scaled by width^-0.5 and its state is keys by values."""
    spec = importlib.util.find_spec("fla")
    assert spec is not None, "fla-core is not installed: pip install -e .[test]"
    path = Path(spec.submodule_search_locations[0]) / "ops/generalized_delta_rule/dplr/naive.py"
    file = importlib.util.spec_from_file_location("dplr_naive", path)
    naive = importlib.util.module_from_spec(file)
    file.loader.exec_module(naive)
    r, log_decay, k, v, a, b = (x.float() for x in inputs(2, 70, 2, parallel=True))
    state = random_state(2, 2).float()
    y, final = scan(r, log_decay, k, v, a, b, WHOLE, state)
    q, k, v, a, b, log_decay = (x.transpose(1, 2) for x in (r * 16**0.5, k, v, a, b, log_decay))
    theirs, their_state = naive.dplr_recurrence(
        q, k, v, a, b, log_decay, initial_state=state.transpose(2, 3), output_final_state=True
    )
    torch.testing.assert_close(y, theirs.transpose(1, 2), rtol=0, atol=2e-5)
    torch.testing.assert_close(final, their_state.transpose(2, 3), rtol=0, atol=2e-5)
