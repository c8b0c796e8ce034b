"""The chunked scan against the recurrence in fp64: values and gradients, documents, groups, states."""

import pytest
import torch
import torch.nn.functional as F

from cupola.models import ssd, ssd_chunks
from cupola.models.segments import Segments

SHAPES = [(2, 150, 4, 8, 2, 16), (1, 1, 2, 4, 1, 4), (3, 128, 4, 8, 4, 8), (1, 300, 4, 8, 1, 8)]
"""batch, length, heads, head_width, groups, state_width."""
NAMES = ("x", "dt", "a", "b", "c", "state", "skip")


def tensors(batch, length, heads, width, groups, columns) -> dict[str, torch.Tensor]:
    """fp64. Decays from weak to such that a chunk's product underflows in fp32."""
    generator = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return {
        "x": normal(batch, length, heads, width),
        "dt": F.softplus(normal(batch, length, heads) - 1),
        "a": -torch.linspace(0.05, 16, heads, dtype=torch.float64),
        "b": normal(batch, length, groups, columns),
        "c": normal(batch, length, groups, columns),
        "state": normal(batch, heads, width, columns),
        "skip": normal(heads),
    }


def random_documents(batch: int, length: int, mean: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(mean)
    return (torch.rand(batch, length, generator=generator) < 1 / mean).cumsum(dim=1)


def outcome(function, inputs, segments, dtype=torch.float64) -> list[torch.Tensor]:
    """y, the last state, and the gradients of all inputs, of a weighted sum of both."""
    exact = torch.promote_types(dtype, torch.float32)
    of = lambda name: dtype if name in ("x", "b", "c") else exact
    leaves = {k: v.detach().to(of(k), copy=True).requires_grad_() for k, v in inputs.items()}
    y, last = function(**leaves, segments=segments)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, last)]
    ((y * weights[0].to(y.dtype)).sum() + (last * weights[1].to(last.dtype)).sum()).backward()
    return [y.detach(), last.detach(), *(t.grad for t in leaves.values())]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


@pytest.mark.parametrize("span", [64, 2048])
@pytest.mark.parametrize("mean", [None, 5, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_equal_the_recurrence(shape, mean, span, monkeypatch):
    monkeypatch.setattr(ssd_chunks, "SPAN", span)
    inputs = tensors(*shape)
    segments = Segments(None if mean is None else random_documents(*shape[:2], mean))
    expected = outcome(ssd.scan_reference, inputs, segments)
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        got = outcome(ssd.scan, inputs, segments, dtype)
        for name, one, other in zip(("y", "last", *NAMES), got, expected, strict=True):
            # The gradient of a is a sum over all tokens that cancels, here to a thousandth.
            assert error(one, other) < (100 if name == "a" else 1) * allowed, name


def test_without_state_and_skip_they_are_zero():
    inputs = tensors(*SHAPES[0])
    inputs["state"], inputs["skip"] = torch.zeros_like(inputs["state"]), torch.zeros_like(inputs["skip"])
    expected = outcome(ssd.scan, inputs, Segments(None))
    del inputs["state"], inputs["skip"]
    for one, other in zip(outcome(ssd.scan, inputs, Segments(None)), expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", [None, 40])
def test_error_of_bf16(mean):
    """A rounding of bf16 is 0.2% on average; the products add up few of them. The gradient of a, a sum over
    all tokens that cancels, has the wider bound."""
    inputs = tensors(2, 300, 4, 16, 2, 16)
    segments = Segments(None if mean is None else random_documents(2, 300, mean))
    expected = outcome(ssd.scan_reference, inputs, segments)
    got = outcome(ssd.scan, inputs, segments, torch.bfloat16)
    assert got[0].dtype == torch.bfloat16
    assert got[1].dtype == torch.float32
    for name, one, other in zip(("y", "last", *NAMES), got, expected, strict=True):
        assert error(one, other) < (0.1 if name == "a" else 0.01), name


def test_autocast_changes_nothing():
    inputs = tensors(*SHAPES[0])
    expected = outcome(ssd.scan, inputs, Segments(None), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(ssd.scan, inputs, Segments(None), torch.float32)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def test_packed_documents_are_as_each_alone():
    inputs = tensors(1, 200, 4, 8, 2, 8)
    del inputs["state"]
    lengths = [70, 1, 2, 64, 63]
    numbers = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))[None]
    whole = {k: v.float().requires_grad_() for k, v in inputs.items()}
    weights = torch.randn(1, 200, 4, 8, generator=torch.Generator().manual_seed(2))
    y, _ = ssd.scan(**whole, segments=Segments(numbers))
    (y * weights).sum().backward()
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = {
            k: (v[:, part] if v.dim() > 1 else v).float().clone().requires_grad_() for k, v in inputs.items()
        }
        mine, _ = ssd.scan(**alone, segments=Segments(None))
        (mine * weights[:, part]).sum().backward()
        torch.testing.assert_close(y[:, part], mine, rtol=1e-5, atol=1e-5)
        for name in ("x", "dt", "b", "c"):
            torch.testing.assert_close(whole[name].grad[:, part], alone[name].grad, rtol=1e-5, atol=1e-5)
        start += length


def test_no_gradient_where_dt_has_underflowed_is_nan():
    inputs = tensors(1, 40, 2, 4, 1, 4)
    inputs["dt"][:, 10:20] = 0
    got = outcome(ssd.scan, inputs, Segments(None), torch.float32)
    expected = outcome(ssd.scan_reference, inputs, Segments(None))
    for one, other in zip(got, expected, strict=True):
        assert error(one, other) < 1e-5


@pytest.mark.parametrize("first", [1, 64, 77])
def test_scan_hands_its_state_to_scan_and_to_steps(first):
    inputs = tensors(2, 100, 4, 8, 2, 16)
    expected, last = ssd.scan_reference(**inputs, segments=Segments(None))
    tokens = {k: inputs.pop(k) for k in ("x", "dt", "b", "c")}
    state, a, skip = inputs["state"], inputs["a"], inputs["skip"]
    begun = {k: v[:, :first] for k, v in tokens.items()}
    y, handed = ssd.scan(**begun, a=a, segments=Segments(None), state=state, skip=skip)
    torch.testing.assert_close(y, expected[:, :first])
    rest = {k: v[:, first:] for k, v in tokens.items()}
    y, end = ssd.scan(**rest, a=a, segments=Segments(None), state=handed, skip=skip)
    torch.testing.assert_close(y, expected[:, first:])
    torch.testing.assert_close(end, last)
    for t in range(first, 100):
        one = {k: v[:, t] for k, v in tokens.items()}
        torch.testing.assert_close(ssd.step(**one, a=a, state=handed, skip=skip), expected[:, t])
    torch.testing.assert_close(handed, last)
