import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cupola.data.batch import IGNORED
from cupola.objectives import cross_entropy
from cupola.objectives.cross_entropy import linear_cross_entropy, token_log_probabilities, token_losses


def example(tokens: int, width: int, vocabulary: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) / width**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden, weight, targets, z_loss=0.0):
    """The textbook formula in fp64."""
    logits = hidden.double() @ weight.double().t()
    cross = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    z = logits.logsumexp(1)[targets != IGNORED].square().sum()
    return cross + z_loss * z, cross, z


def gradients(total, hidden, weight, divisor):
    return torch.autograd.grad(total / divisor, (hidden, weight))


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request, monkeypatch):
    """Chunks of 8 rows and blocks of 3, so that neither divides the number of tokens."""
    if request.param == "chunks":
        monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 1)
        monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 8)
        monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 3 * 97 * 4)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("ignored", [False, True])
def test_exact_in_fp32(z_loss, ignored):
    hidden, weight, targets = example(29, 16, 97)
    if ignored:
        targets[[0, 7, 8, 28]] = IGNORED
    found = linear_cross_entropy(hidden, weight, targets, z_loss)
    expected = plain(hidden, weight, targets, z_loss)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference.item(), rel=1e-6)
    pairs = zip(
        gradients(found[0], hidden, weight, 25), gradients(expected[0], hidden, weight, 25), strict=True
    )
    for gradient, reference in pairs:
        assert gradient.dtype == torch.float32
        assert relative(gradient, reference) < 1e-6


@pytest.mark.usefixtures("chunks")
def test_bf16_autocast_is_as_good_as_the_plain_formula_under_autocast():
    hidden, weight, targets = example(61, 64, 97)
    with torch.autocast("cpu", torch.bfloat16):
        found, _, _ = linear_cross_entropy(hidden, weight, targets)
        theirs = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    exact, _, _ = plain(hidden, weight, targets)
    # Rounding of the logits to bf16 is all that may be lost: far below one bf16 ulp of the loss.
    assert found.dtype == torch.float32
    lost, plain_lost = abs((found - exact).item()), abs((theirs - exact).item())
    assert lost <= max(1.5 * plain_lost, 2e-4 * exact.item())
    ours, plains, right = (gradients(x, hidden, weight, 61) for x in (found, theirs, exact))
    for gradient, plain_gradient, reference in zip(ours, plains, right, strict=True):
        assert gradient.dtype == torch.float32
        assert relative(gradient, reference) < 1.25 * relative(plain_gradient, reference)


def test_statistics_are_fp32_under_autocast():
    """Logits that are whole numbers survive bf16, so only the statistics could lose anything."""
    weight = torch.arange(50.0)[:, None].remainder(7)
    hidden, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([3, 49])
    with torch.autocast("cpu", torch.bfloat16):
        found = token_losses(hidden, weight, targets)
    expected = F.cross_entropy(hidden.double() @ weight.double().t(), targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_extreme_logits():
    weight = torch.tensor([[200.0], [-200.0], [0.0]], requires_grad=True)
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    total, _, _ = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    assert total.item() == 400.0
    assert all(bool(torch.isfinite(g).all()) for g in gradients(total, hidden, weight, 1))


def test_only_the_gradient_that_is_asked_for():
    hidden, weight, targets = example(5, 4, 11)
    total, _, _ = linear_cross_entropy(hidden, weight.detach(), targets)
    total.backward()
    expected = gradients(plain(hidden, weight, targets)[0], hidden, weight, 1)
    assert relative(hidden.grad, expected[0]) < 1e-6
    hidden.grad = None
    linear_cross_entropy(hidden.detach(), weight, targets)[0].backward()
    assert hidden.grad is None
    assert relative(weight.grad, expected[1]) < 1e-6


def test_differentiated_once():
    hidden, weight, targets = example(5, 4, 11)
    total, _, _ = linear_cross_entropy(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


@pytest.mark.usefixtures("chunks")
def test_token_losses():
    hidden, weight, targets = example(29, 16, 97)
    targets[4] = IGNORED
    found = token_losses(hidden, weight, targets)
    expected = F.cross_entropy(
        hidden.double() @ weight.double().t(), targets, ignore_index=IGNORED, reduction="none"
    )
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_no_tokens():
    hidden, weight, targets = example(3, 4, 11)
    assert token_losses(hidden[:0], weight, targets[:0]).shape == (0,)
    assert linear_cross_entropy(hidden[:0], weight, targets[:0])[0].item() == 0.0


@pytest.mark.parametrize("passes", ["training", "evaluation"])
def test_all_logits_are_never_held(passes, monkeypatch):
    """Every tensor that an operation makes is counted: none may be as large as a quarter of the logits."""
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 2**27)  # fewer operations, of which each is slow here
    tokens, vocabulary = 4096, 131072
    limit = tokens * vocabulary // 4
    # Fake tensors have shapes and no memory, so that a large case costs nothing.
    with FakeTensorMode(), LargestTensor() as largest:
        hidden = torch.empty(tokens, 8, requires_grad=True)
        weight = torch.empty(vocabulary, 8, requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.int64)
        if passes == "training":
            linear_cross_entropy(hidden, weight, targets)[0].backward()
        else:
            token_losses(hidden, weight, targets)
    assert 0 < largest.elements < limit


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.oracle
@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has none of its own")
def test_equals_torchs_own():
    hidden, weight, targets = example(40, 16, 300)
    found = gradients(linear_cross_entropy(hidden, weight, targets)[0], hidden, weight, 40)
    theirs = F.linear_cross_entropy(hidden, weight, targets, reduction="sum")
    for ours, reference in zip(found, gradients(theirs, hidden, weight, 40), strict=True):
        assert relative(ours, reference) < 1e-6
    assert math.isclose(linear_cross_entropy(hidden, weight, targets)[0].item(), theirs.item(), rel_tol=1e-6)


@pytest.mark.usefixtures("chunks")
def test_log_probabilities_take_a_gradient_for_each_token():
    hidden, weight, targets = example(29, 16, 97)
    targets[[0, 7, 28]] = IGNORED
    factors = torch.linspace(-2, 3, 29)
    found = token_log_probabilities(hidden, weight, targets)
    logits = hidden.double() @ weight.double().t()
    reference = -F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference, rtol=1e-6, atol=1e-6)
    # A function of all of them at once, as losses of whole answers are.
    ours, theirs = ((value * factors).sum().sigmoid() for value in (found, reference))
    pairs = zip(gradients(ours, hidden, weight, 1), gradients(theirs, hidden, weight, 1), strict=True)
    for gradient, expected in pairs:
        assert gradient.dtype == torch.float32
        assert relative(gradient, expected) < 1e-5


def test_log_probabilities_in_bf16_are_those_of_the_loss():
    hidden, weight, targets = example(61, 64, 97)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_log_probabilities(hidden, weight, targets)
        total, _, _ = linear_cross_entropy(hidden, weight, targets)
    assert -found.sum().item() == pytest.approx(total.item(), rel=1e-6)
    # Of a power of two bf16 rounds the same digits, before the products or after.
    ours, theirs = gradients(-found.sum(), hidden, weight, 64), gradients(total, hidden, weight, 64)
    for gradient, expected in zip(ours, theirs, strict=True):
        assert relative(gradient, expected) < 1e-6


class Products(TorchDispatchMode):
    """The shapes of all products of matrices."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket == torch.ops.aten.mm:
            self.shapes.add(tuple(tuple(x.shape) for x in args))
        return function(*args, **(kwargs or {}))


def test_any_number_of_tokens_makes_few_shapes_of_bf16_products():
    """Each new one costs oneDNN 3 to 15 ms, and every step has another number of learnt tokens."""
    products = Products()
    for tokens in range(130, 190):
        hidden, weight, targets = example(tokens, 16, 97)
        with products, torch.autocast("cpu", torch.bfloat16):
            found = linear_cross_entropy(hidden, weight, targets)[0]
        assert found.item() == pytest.approx(plain(hidden, weight, targets)[0].item(), rel=1e-2)
    assert len(products.shapes) == 3  # logits, and the gradients of hidden and weight
