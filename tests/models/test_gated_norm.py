"""The gated norm against its formula, with gradients."""

import pytest
import torch

from cupola.models import gated_norm as module
from cupola.models.gated_norm import gated_norm, gated_norm_reference


def outcome(function, y, gate, weight, gradient, groups):
    leaves = [t.clone().requires_grad_() for t in (y, gate, weight)]
    out = function(*leaves, groups, 1e-5)
    out.backward(gradient)
    return [out.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("block", [4, 512])
def test_gated_norm_equals_the_formula(groups, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    y, gate, gradient = torch.randn(3, 2, 7, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, generator=generator, dtype=torch.float64)
    want = outcome(gated_norm_reference, y, gate, weight, gradient, groups)
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 6e-3)):
        exact = torch.promote_types(dtype, torch.float32)
        inputs = (y.to(dtype), gate.to(dtype), weight.to(exact), gradient.to(dtype))
        got = outcome(gated_norm, *inputs, groups)
        assert [t.dtype for t in got] == [dtype, dtype, dtype, exact]
        for one, other in zip(got, want, strict=True):
            assert float((one.double() - other).norm() / other.norm()) < allowed
