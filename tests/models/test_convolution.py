"""The convolution against its formula: values, gradients, documents, decoding."""

import pytest
import torch
import torch.nn.functional as F

from cupola.models import convolution
from cupola.models.convolution import Convolution, convolve, convolve_reference, edges, history
from cupola.models.segments import Segments

CPU = torch.device("cpu")
SHAPES = [(1, 50, 8, 4), (3, 20, 6, 4), (2, 1, 4, 4), (4, 2, 4, 4), (2, 30, 5, 2), (2, 9, 4, 1)]
"""batch, length, channels, taps."""


def tensors(batch, length, channels, taps, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = ((batch, length, channels), (channels, taps), (channels,), (batch, length, channels))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def random_documents(batch, length, mean):
    generator = torch.Generator().manual_seed(mean)
    return Segments((torch.rand(batch, length, generator=generator) < 1 / mean).cumsum(dim=1))


def outcome(function, x, weight, bias, gradient):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    y.backward(gradient)
    return [y.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("block", [7, 512])
@pytest.mark.parametrize("mean", [None, 2, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_equals_the_formula(shape, mean, block, monkeypatch):
    monkeypatch.setattr(convolution, "BLOCK", block)
    batch, length, _, taps = shape
    segments = Segments(None) if mean is None else random_documents(batch, length, mean)
    reach = edges(segments, batch, length, taps, CPU)
    want = outcome(lambda *inputs: convolve_reference(*inputs, segments), *tensors(*shape))
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = outcome(lambda *inputs: convolve(*inputs, reach), *tensors(*shape, dtype))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=allowed, atol=allowed)


def test_the_formula_is_torchs_convolution():
    x, weight, bias, _ = tensors(2, 20, 6, 4)
    padded = F.pad(x.transpose(1, 2), (3, 0))
    expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=6).transpose(1, 2))
    torch.testing.assert_close(convolve_reference(x, weight, bias, Segments(None)), expected)


def test_nothing_leaks_from_another_document_not_even_infinity():
    x, weight, bias, _ = tensors(1, 20, 6, 4, torch.float32)
    numbers = torch.tensor([[0] * 8 + [1] * 12])
    reach = edges(Segments(numbers), 1, 20, 4, CPU)
    expected = convolve(x, weight, bias, reach)[:, 8:]
    x[:, :8] = torch.inf
    assert torch.equal(convolve(x, weight, bias, reach)[:, 8:], expected)


def test_error_of_bf16():
    shape = (2, 100, 32, 4)
    segments = random_documents(2, 100, 20)
    reach = edges(segments, *shape[:2], 4, CPU)
    x, weight, bias, gradient = tensors(*shape)
    want = outcome(lambda *i: convolve_reference(*i, segments), x, weight, bias, gradient)
    inputs = (x.bfloat16(), weight.float(), bias.float(), gradient.bfloat16())
    got = outcome(lambda *i: convolve(*i, reach), *inputs)
    assert [t.dtype for t in got] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for one, other in zip(got, want, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.006


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("first", [1, 2, 3, 10])
def test_history_continues_a_row(first, packed):
    x, weight, bias, _ = tensors(2, 20, 6, 4, torch.float32)
    module = Convolution(6, 4)
    module.load_state_dict({"weight": weight, "bias": bias})
    numbers = torch.ones(2, 20, dtype=torch.int64)
    if packed:
        numbers[0, : first - 1] = 0
    expected = module(x, edges(Segments(numbers), 2, 20, 4, CPU))
    begun, after = x[:, :first], x[:, first:]
    kept = history(begun, Segments(numbers[:, :first]), 4)
    torch.testing.assert_close(module.continued(after, kept), expected[:, first:])
    for t in range(first, 20):
        one = x[:, t : t + 1]
        torch.testing.assert_close(module.continued(one, kept), expected[:, t : t + 1])
        kept = history(one, Segments(None), 4, kept)
