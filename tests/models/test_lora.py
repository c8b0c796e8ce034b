"""LoRA's layers against the plain formula, in every family; what is frozen costs nothing and stays."""

import pytest
import torch

from cupola.data.batch import Microbatch
from cupola.models import build, experts, lora
from cupola.models.layers import Linear
from cupola.models.table.trained import ADAPTERS
from cupola.objectives import NextToken, cross_entropy
from tests.models.small_models import ALL, EXPERTS_BIAS, LLAMA
from tests.models.test_trained import stage

VOCABULARY = 97


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length + 1), generator=torch.Generator().manual_seed(3))


def adapted(model, seed: int = 0, **settings):
    """A module whose updates are no longer 0."""
    module = build(model, VOCABULARY, seed)
    lora.restrict(module, stage(**{"rank": 4, **settings}), "sft", seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.1, generator=generator)
    return module


@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_formula(rows, bias):
    torch.manual_seed(0)
    base = Linear(24, 40, bias)
    layer = lora.AdaptedLinear(base, 3, 0.7)
    for parameter in (layer.lora_a, layer.lora_b):
        torch.nn.init.normal_(parameter)
    layer.weight.requires_grad_(False)
    x, gradient = torch.randn(rows, 24), torch.randn(rows, 40)
    layer(x).backward(gradient)
    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_a, layer.lora_b))
    own = base.bias if bias else 0
    expected = x @ base.weight.T + own + 0.7 * (x @ a.T) @ b.T
    expected.backward(gradient)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.lora_a.grad, a.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.lora_b.grad, b.grad, rtol=1e-5, atol=1e-4)
    assert base.weight.grad is None
    before = layer(x)
    torch.testing.assert_close(layer.merged()(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_begins_as_the_model_and_ends_merged(name):
    plain = build(ALL[name], VOCABULARY, 0)
    module = build(ALL[name], VOCABULARY, 0)
    lora.restrict(module, stage(rank=4), "sft", 0)
    ids = tokens()[:, :-1]
    assert torch.equal(module.hidden(ids), plain.hidden(ids))
    module = adapted(ALL[name])
    different = module.logits(module.hidden(ids))
    assert not torch.allclose(different, plain.logits(plain.hidden(ids)), rtol=1e-3)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    taken = lora.merge(module)
    assert taken.keys() == {key for key in state if key.endswith(ADAPTERS)}
    assert all(torch.equal(taken[key], state[key]) for key in taken)
    torch.testing.assert_close(module.logits(module.hidden(ids)), different, rtol=1e-4, atol=1e-5)
    found = lora.merged(state, 2.0)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert found.keys() == plain.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in module.state_dict().items())
    assert not lora.holds_adapters(found)
    assert lora.holds_adapters(state)
    assert lora.merge(module) == {}


@pytest.mark.parametrize("name", ALL)
def test_only_what_is_named_has_gradients(name):
    module = adapted(ALL[name], train=["norm.weight"])
    NextToken().loss(module, Microbatch.of_rows(tokens())).sum.backward()
    with_gradient = {n for n, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == {p.name for p in module.adapters} | {"norm.weight"}
    assert all(module.get_parameter(n).grad.any() for n in with_gradient)


def test_first_weights_are_kaimings_and_keyed():
    def first(stage_name, seed):
        module = build(LLAMA, VOCABULARY, 0)
        lora.restrict(module, stage(rank=4), stage_name, seed)
        return {n: p.detach() for n, p in module.named_parameters() if n.endswith(ADAPTERS)}

    found = first("sft", 1)
    for name, tensor in found.items():
        assert name.endswith("lora_a") or not tensor.any()
    a = torch.cat([t.flatten() for n, t in found.items() if n.endswith("lora_a") and t.shape[1] == 64])
    assert float(a.abs().max()) <= 64**-0.5  # kaiming_uniform_(a=sqrt(5)), as PEFT draws it
    assert float(a.std()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
    name = "blocks.0.mixer.query.lora_a"
    assert torch.equal(found[name], first("sft", 1)[name])
    for other in (first("dpo", 1), first("sft", 2)):
        assert not torch.equal(found[name], other[name])


def test_one_layers_first_weights_depend_on_no_other():
    few, all_ = (build(LLAMA, VOCABULARY, 0) for _ in range(2))
    lora.restrict(few, stage(rank=4, targets=["value"]), "sft", 0)
    lora.restrict(all_, stage(rank=4), "sft", 0)
    name = "blocks.1.mixer.value.lora_a"
    assert torch.equal(few.get_parameter(name), all_.get_parameter(name))


def test_a_frozen_head_costs_no_gradient(monkeypatch):
    def never(*arguments):
        raise AssertionError("the gradient of a frozen head was made")

    module = build(LLAMA, VOCABULARY, 0)
    lora.restrict(module, stage(["head"]), "sft", 0)
    monkeypatch.setattr(cross_entropy, "_add_product", never)
    NextToken().loss(module, Microbatch.of_rows(tokens())).sum.backward()
    assert module.head.weight.grad is None
    assert module.norm.weight.grad is not None
    with pytest.raises(AssertionError, match="frozen head"):
        NextToken().loss(build(LLAMA, VOCABULARY, 0), Microbatch.of_rows(tokens()))


@pytest.mark.parametrize("model", [LLAMA, ALL["experts"], ALL["rwkv7"], ALL["mamba2"], ALL["gpt2"]])
def test_gradients_beside_what_is_frozen_are_the_same(model):
    whole, part = (build(model, VOCABULARY, 0) for _ in range(2))
    names = ["blocks.0.*", "blocks.1.*.weight", "embedding.weight"]
    lora.restrict(part, stage(names), "sft", 0)
    for module in (whole, part):
        NextToken().loss(module, Microbatch.of_rows(tokens(4, 32))).sum.backward()
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad, msg=name)
        else:
            assert parameter.grad is None


def test_nothing_below_the_lowest_trained_parameter_is_differentiated():
    module = build(LLAMA, VOCABULARY, 0)
    lora.restrict(module, stage(["blocks.0.*", "embedding"]), "sft", 0)
    kept = {}
    for name, block in module.numbered_blocks():
        block.register_forward_hook(lambda layer, args, out, name=name: kept.update({name: out[0]}))
    module.hidden(tokens()[:, :-1])
    assert [kept[name].requires_grad for name in ("0", "1")] == [False, True]


def test_the_bias_of_a_frozen_router_stays():
    module = build(EXPERTS_BIAS, VOCABULARY, 0)
    lora.restrict(module, stage(["blocks.1.feedforward.router.weight"]), "sft", 0)
    loads = tuple(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]) for _ in range(2))
    experts.rebalance(module, loads)
    biases = [module.get_buffer(f"blocks.{n}.feedforward.balance_bias") for n in (1, 2)]
    assert [bool(bias.any()) for bias in biases] == [False, True]


def test_weights_of_the_plain_model_are_taken_over():
    plain = build(LLAMA, VOCABULARY, 5)
    module = adapted(LLAMA)
    own = module.get_parameter("blocks.0.mixer.query.lora_b").clone()
    lora.load(module, plain.state_dict())
    assert torch.equal(module.blocks["0"].mixer.query.weight, plain.blocks["0"].mixer.query.weight)
    assert torch.equal(module.get_parameter("blocks.0.mixer.query.lora_b"), own)
    with pytest.raises(RuntimeError, match=r"blocks\.2"):
        lora.load(module, build(LLAMA.model_copy(update={"layers": 3}), VOCABULARY, 5).state_dict())


def test_decoding_sees_the_update():
    module = adapted(LLAMA).eval()
    ids = tokens(1, 12)[:, :-1]
    with torch.no_grad():
        cache = module.cache(12)
        parts = [module.hidden(ids[:, i : i + 1], cache=cache) for i in range(12)]
        torch.testing.assert_close(torch.cat(parts, 1), module.hidden(ids), rtol=1e-4, atol=1e-5)
