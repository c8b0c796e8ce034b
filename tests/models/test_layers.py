"""The hand-written backward passes against autograd of the formula; rotary frequencies."""

import math

import pytest
import torch
import torch.nn.functional as F

from cupola.models.layers import RMSNorm, linear, rmsnorm_reference
from cupola.models.rope import frequencies, rotate, rotate_reference, rotation
from cupola.recipe.model import Rope


def with_gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    weights = weights.bfloat16().to(out.dtype)  # the same numbers in every dtype
    (out * weights).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("shape", [(2, 40, 24), (70, 24), (1, 3, 24), (2, 3, 40, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torchs(shape, bias):
    module = torch.nn.Linear(24, 50, bias)
    x, parameters = torch.randn(shape), list(module.parameters())
    for got, want in zip(
        with_gradients(linear, x, *parameters), with_gradients(F.linear, x, *parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_linear_takes_views_and_gives_gradients_only_where_they_are_needed():
    x = torch.randn(24, 100).t()
    weight = torch.randn(50, 24, requires_grad=True)
    linear(x, weight).t().contiguous().t().backward(torch.randn(50, 100).t())
    assert x.grad is None
    assert weight.grad.shape == (50, 24)
    frozen = torch.randn(50, 24)
    x = torch.randn(100, 24, requires_grad=True)
    gradient = torch.randn(100, 50)
    linear(x, frozen).backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ frozen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 32), (1, 1, 7), (3, 4, 2, 16)])
def test_rmsnorm_equals_the_formula(shape):
    x, weight = torch.randn(shape) * 3 + 1, torch.randn(shape[-1])

    def ours(x, weight):
        module = RMSNorm(shape[-1], 1e-3)
        del module.weight
        module.weight = weight
        return module(x)

    for got, want, torchs in zip(
        with_gradients(ours, x, weight),
        with_gradients(lambda x, w: rmsnorm_reference(x, w, 1e-3), x, weight),
        with_gradients(lambda x, w: F.rms_norm(x, shape[-1:], w, 1e-3), x, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got, torchs, rtol=1e-5, atol=1e-6)


def test_rmsnorm_under_autocast_computes_in_fp32_and_returns_bf16():
    module, x = RMSNorm(64, 1e-5), torch.randn(4, 64) * 100
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, module(x).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_equals_the_textbook_form(dtype):
    """In bf16: the fp32 result, rounded once."""
    x = torch.randn(2, 40, 3, 16).to(dtype)
    tables = rotation(Rope(), 16, 0, 40, x.device)
    got = with_gradients(lambda x: rotate(x, tables), x)
    want = with_gradients(lambda x: rotate_reference(x, tables), x.float())
    torch.testing.assert_close(got[0], want[0].to(dtype))
    torch.testing.assert_close(
        got[1].float(), want[1], rtol=2**-7, atol=0.02 if dtype != x.float().dtype else 1e-6
    )


def test_rotation_is_by_complex_multiplication_and_precise_far_out():
    position, width = 100_003, 8
    x = torch.randn(1, 1, 1, width, dtype=torch.float32)
    turned = rotate(x, rotation(Rope(rope_theta=500000.0), width, position, position + 1, x.device))
    pairs = torch.complex(x[..., : width // 2].double(), x[..., width // 2 :].double())
    angles = [position * 500000.0 ** (-2 * i / width) for i in range(width // 2)]
    factors = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
    expected = torch.view_as_real(pairs * factors).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(turned, expected.float(), rtol=1e-6, atol=1e-6)


def test_scaled_frequencies():
    plain = frequencies(Rope(), 64)
    torch.testing.assert_close(frequencies(Rope(rope_type="linear", factor=4.0), 64), plain / 4)
    rope = Rope(rope_type="llama3", factor=8.0, original_max_position_embeddings=512)
    scaled, wavelengths = frequencies(rope, 64), 2 * math.pi / plain
    assert torch.equal(scaled[wavelengths < 512 / 4], plain[wavelengths < 512 / 4])
    torch.testing.assert_close(scaled[wavelengths > 512], plain[wavelengths > 512] / 8)
    between = (wavelengths > 512 / 4) & (wavelengths < 512)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_tables_first_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        rotation(Rope(rope_theta=77.0), 8, 0, 4, torch.device("cpu"))
    x = torch.randn(1, 4, 1, 8, requires_grad=True)
    rotate(x, rotation(Rope(rope_theta=77.0), 8, 0, 4, x.device)).sum().backward()
    assert x.grad is not None
