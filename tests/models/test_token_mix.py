"""RWKV-7's channel-wise parts against autograd through their formulas, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cupola.models import token_mix
from cupola.models.segments import Segments
from cupola.models.token_mix import gated_output, keys, mix, plain_keys, plain_mix, plain_output, squared_relu

BATCH, LENGTH, HEADS, WIDTH = 2, 13, 3, 8
NUMBERS = torch.tensor([[0] * 4 + [1] + [2] * 8, [3] * 13])


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(token_mix, "TILE", 5 * HEADS * WIDTH)


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def outcomes(function, tensors: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients; a fixed random weighting of the outputs is the loss."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    outputs = function(*leaves)
    loss = sum((y * draw(*y.shape, seed=100 + i)).sum() for i, y in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def assert_same(function, formula, tensors: list[Tensor]) -> None:
    for got, want in zip(outcomes(function, tensors), outcomes(formula, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def mixed(x: Tensor, last: Tensor | None, numbers: Tensor | None, shares: list[Tensor]) -> list[Tensor]:
    """Token by token."""
    found = []
    for share in shares:
        rows = []
        for b in range(len(x)):
            for t in range(x.shape[1]):
                begins = t > 0 and numbers is not None and numbers[b, t] != numbers[b, t - 1]
                at_start = t == 0 and last is None
                previous = last[b, 0] if t == 0 and last is not None else x[b, t - 1]
                previous = torch.zeros_like(x[b, t]) if begins or at_start else previous
                rows.append(x[b, t] + (previous - x[b, t]) * share)
        found.append(torch.stack(rows).view(x.shape))
    return found


@pytest.mark.parametrize("numbers", [None, NUMBERS])
@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_mix_is_the_formula(count, with_last, numbers):
    width = HEADS * WIDTH
    last = draw(BATCH, 1, width, seed=50) if with_last else None
    tensors = [draw(BATCH, LENGTH, width, seed=0), *(draw(width, seed=1 + i) for i in range(count))]
    assert_same(
        lambda x, *shares: mix(x, last, Segments(numbers), list(shares)),
        lambda x, *shares: mixed(x, last, numbers, list(shares)),
        tensors,
    )
    reaches = None if numbers is None else Segments(numbers).reaches(1)
    if not with_last:
        plain = plain_mix(tensors[0], None, reaches, *tensors[1:])
        assert all(map(torch.equal, plain, mix(tensors[0], None, Segments(numbers), tensors[1:])))


def test_mix_of_one_token():
    x, share = draw(BATCH, 1, 4, seed=0), draw(4, seed=1)
    torch.testing.assert_close(mix(x, None, Segments(None), [share])[0], x - x * share)


def test_keys_are_the_formula_also_where_a_key_is_zero():
    key = draw(BATCH, LENGTH, HEADS, WIDTH, seed=0)
    rate = torch.sigmoid(draw(BATCH, LENGTH, HEADS, WIDTH, seed=1))
    vectors = [draw(HEADS * WIDTH, seed=2), draw(HEADS * WIDTH, seed=3)]
    assert_same(keys, plain_keys, [key, rate, *vectors])
    key[0, 3, 1] = 0
    found = outcomes(keys, [key, rate, *vectors])
    assert all(x.isfinite().all() for x in found)
    assert not found[1][0, 3, 1].any()


def test_the_gated_output_is_the_formula():
    tensors = [draw(BATCH, LENGTH, HEADS, WIDTH, seed=i) for i in range(5)]
    tensors += [draw(HEADS * WIDTH, seed=5 + i) for i in range(3)]
    assert_same(lambda *x: [gated_output(*x, 64e-5)], lambda *x: [plain_output(*x, 64e-5)], tensors)


def test_the_squared_relu_is_the_formula():
    assert_same(lambda x: [squared_relu(x)], lambda x: [F.relu(x).square()], [draw(3, 40, seed=0)])


@pytest.mark.parametrize("which", ["mix", "keys", "gated_output"])
def test_bf16_costs_little_more_than_one_rounding(which):
    """One rounding is an error of about 0.2%."""
    heads = [draw(BATCH, LENGTH, HEADS, WIDTH, seed=i).bfloat16() for i in range(5)]
    vectors = [draw(HEADS * WIDTH, seed=5 + i).float() for i in range(3)]
    if which == "mix":
        tensors = [heads[0].flatten(2), vectors[0].bfloat16().float()]
        function = lambda x, share: list(mix(x, None, Segments(None), [share]))
    elif which == "keys":
        tensors = [heads[0], torch.sigmoid(heads[1].float()), *vectors[:2]]
        function = lambda *x: list(keys(*x))
    else:
        tensors, function = [*heads, *vectors], lambda *x: [gated_output(*x, 64e-5)]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        ones = [torch.ones_like(y) for y in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, ones)]

    for got, want in zip(run(tensors), run([x.double() for x in tensors]), strict=True):
        assert (got.double() - want).norm() / want.norm() < (0.012 if which == "mix" else 0.004)
