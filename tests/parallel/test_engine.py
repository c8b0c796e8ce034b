import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cupola.data.batch import IGNORED, Microbatch
from cupola.models import build
from cupola.objectives import NextToken
from cupola.parallel.engine import LocalEngine
from cupola.recipe.model import Model
from tests.models.small_models import EXPERTS


@pytest.fixture
def module():
    return build(Model(layers=2, width=32, heads=2), 97, seed=1)


def microbatches(count: int = 3) -> list[Microbatch]:
    rows = np.random.default_rng(0).integers(0, 97, (count * 2, 17))
    return [Microbatch.of_rows(rows[2 * i : 2 * i + 2]) for i in range(count)]


def joined(parts: list[Microbatch]) -> Microbatch:
    return Microbatch(
        torch.cat([p.tokens for p in parts]),
        torch.cat([p.targets for p in parts]),
        torch.cat([p.documents for p in parts]),
        np.concatenate([p.sources for p in parts]),
    )


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def test_gradient_is_of_the_mean_over_valid_tokens(module):
    """However the batch is cut, and wherever the ignored targets lie."""
    parts = microbatches()
    parts[1].targets[:, 3:] = IGNORED
    valid = sum(int((p.targets >= 0).sum()) for p in parts)
    whole = joined(parts)
    logits = F.linear(module.hidden(whole.tokens, whole.documents), module.head_weight)
    expected = F.cross_entropy(logits.flatten(0, 1), whole.targets.flatten(), ignore_index=IGNORED)
    expected.backward()
    reference = gradients(module)
    for cut in (parts, [whole]):
        module.zero_grad()
        result = LocalEngine(module, "fp32", "cpu").forward_backward(cut, NextToken(), valid)
        torch.testing.assert_close(result.loss, expected.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(result.total, result.loss)
        assert not result.loss.requires_grad
        for name, gradient in gradients(module).items():
            torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-7, msg=name)


def test_gradients_are_added(module):
    engine, parts = LocalEngine(module, "fp32", "cpu"), microbatches(1)
    engine.forward_backward(parts, NextToken(), 32)
    once = gradients(module)
    engine.forward_backward(parts, NextToken(), 32)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, 2 * once[name], msg=name)


def test_bf16_computes_in_bf16_and_keeps_fp32(module):
    parts = microbatches()
    exact = LocalEngine(copy.deepcopy(module), "fp32", "cpu")
    exact_loss = exact.forward_backward(parts, NextToken(), 96).loss
    seen = []
    module.blocks["0"].mixer.query.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    result = LocalEngine(module, "bf16", "cpu").forward_backward(parts, NextToken(), 96)
    assert seen == [torch.bfloat16] * 3
    assert result.loss.dtype == torch.float32
    assert float(result.loss) == pytest.approx(float(exact_loss), rel=1e-3)
    for name, gradient in gradients(module).items():
        assert gradient.dtype == torch.float32
        reference = exact.module.get_parameter(name).grad
        assert float((gradient - reference).norm() / reference.norm()) < 0.03, name


def test_cached_casts_accumulate_like_fresh_ones(module):
    """The bf16 copies of the weights are shared by the microbatches; each must still pass its gradient on."""
    parts = microbatches()
    LocalEngine(module, "bf16", "cpu").forward_backward(parts, NextToken(), 96)
    together = gradients(module)
    module.zero_grad()
    for part in parts:
        LocalEngine(module, "bf16", "cpu").forward_backward([part], NextToken(), 96)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_weights_changed_between_batches_are_seen_in_bf16(module):
    engine, parts = LocalEngine(module, "bf16", "cpu"), microbatches(1)
    first = float(engine.forward_backward(parts, NextToken(), 32).loss)
    with torch.no_grad():
        module.head.weight.mul_(5)
    assert float(engine.forward_backward(parts, NextToken(), 32).loss) != first


def test_metrics_are_divided_like_the_loss(module):
    parts = microbatches()
    result = LocalEngine(module, "fp32", "cpu").forward_backward(parts, NextToken(z_loss=0.1), 96)
    assert result.metrics.keys() == {"z"}
    assert float(result.total) == pytest.approx(float(result.loss + 0.1 * result.metrics["z"]), rel=1e-6)


def test_loads_of_experts_are_summed_over_the_microbatches():
    module = build(EXPERTS, 97, seed=1)
    parts = microbatches()
    result = LocalEngine(module, "fp32", "cpu").forward_backward(parts, NextToken(), 96)
    whole = joined(parts)
    with torch.no_grad():
        expected = module(whole.tokens, whole.documents).loads
    assert len(result.loads) == EXPERTS.layers
    for found, load in zip(result.loads, expected, strict=True):
        assert torch.equal(found, load)
        assert int(found.sum()) == 96 * EXPERTS.experts.active
    assert result.metrics.keys() == {"balance"}
    total = result.loss + result.metrics["balance"]
    torch.testing.assert_close(result.total, total, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients(module):
    parts = microbatches(1)
    engine = LocalEngine(module, "fp32", "cpu")
    engine.forward_backward(parts, NextToken(), 32)
    eager, names = gradients(module), list(module.state_dict())
    module.zero_grad()
    engine.compile()
    engine.forward_backward(parts, NextToken(), 32)
    assert list(module.state_dict()) == names
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-4, atol=1e-6, msg=name)
