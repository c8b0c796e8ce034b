"""What `freeze` and `lora` name in a model, what they refuse, and what is counted of it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cupola import optim
from cupola.errors import InputError
from cupola.models import attention, build, layers, lora, table
from cupola.models.table import SCORE, trained, transfer
from cupola.recipe.adapting import Lora
from cupola.recipe.model import Model
from cupola.recipe.schema import Stage
from tests.models.small_models import ALL, EXPERTS, EXPERTS_BIAS, GPT2, LLAMA, MAMBA2, RWKV7

VOCABULARY = 97


def stage(freeze=(), **lora) -> Stage:
    settings = {"data": {"mine": 1}, "learning_rate": 1e-3, "freeze": list(freeze)}
    return Stage.model_validate({**settings, **({"lora": lora} if lora else {})})


def frozen(model: Model, *names: str) -> set[str]:
    return {p.name for p in trained.of_stage(model, VOCABULARY, stage(names)).frozen}


def adapted(model: Model, *targets: str) -> list[str]:
    part = trained.of_stage(model, VOCABULARY, stage(targets=list(targets), rank=3))
    assert [p.name.rpartition(".")[2] for p in part.adapters[:2]] == ["lora_a", "lora_b"]
    return [p.name.removesuffix(".lora_a") for p in part.adapters[::2]]


def test_roles_and_patterns_of_names():
    assert frozen(LLAMA, "embedding", "head") == {"embedding.weight", "head.weight"}
    assert frozen(LLAMA, "vector") == frozen(LLAMA, "*norm*")
    first = frozen(LLAMA, "blocks.0.*")
    assert len(first) == 9
    assert all(name.startswith("blocks.0.") for name in first)
    assert frozen(LLAMA, "blocks.0.*", "head") == first | {"head.weight"}
    assert {p.role for p in table.parameters(RWKV7, 5) if p.name in frozen(RWKV7, "low_rank")} == {"low_rank"}
    # A bias that no gradient moves is nobody's to freeze by itself.
    assert "balance_bias" not in "".join(frozen(EXPERTS_BIAS, "blocks.1.*"))


def test_layers_by_name_or_by_its_ending():
    whole = adapted(LLAMA)
    assert len(whole) == 14
    assert adapted(LLAMA, "query", "value") == [n for n in whole if n.endswith(("query", "value"))]
    assert adapted(LLAMA, "mixer.*") == [n for n in whole if ".mixer." in n]
    assert adapted(LLAMA, "blocks.1.feedforward.up") == ["blocks.1.feedforward.up"]
    assert adapted(LLAMA, "down", "blocks.0.*") == [n for n in whole if "blocks.0" in n or "down" in n]
    assert {n.rpartition(".")[2] for n in adapted(MAMBA2)} == {"gate", "input", "b", "c", "dt", "output"}
    projections = {"receptance", "key", "value", "output"}
    assert {n.rpartition(".")[2] for n in adapted(RWKV7)} == projections
    assert len(adapted(RWKV7, "decay_*")) == 6
    assert all("mixer" in name for name in adapted(EXPERTS))
    assert "blocks.1.feedforward.shared.up" in adapted(EXPERTS_BIAS)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (LLAMA, {"freeze": ["blocks.2.*"]}, "freeze: no parameter is called blocks.2.\\*"),
        (LLAMA, {"freeze": ["blocks.0"]}, "freeze: blocks.0 is no parameter; did you mean blocks.0.\\*\\?"),
        (LLAMA, {"freeze": ["embeding"]}, "did you mean embedding\\?"),
        (
            LLAMA,
            {"freeze": ["low_rank"]},
            "role low_rank; it has matrix, embedding, head, vector",
        ),
        (GPT2, {"freeze": ["head"]}, "no head of its own: it is tied to the embedding"),
        (EXPERTS_BIAS, {"freeze": ["*.balance_bias"]}, "freeze: no parameter is called"),
        (LLAMA, {"freeze": ["matrix", "vector", "embedding", "head"]}, "nothing is left to train"),
        (LLAMA, {"freeze": ["*"]}, "nothing is left to train"),
        (LLAMA, {"lora": {"targets": ["q_proj"]}}, "lora.targets: .* called q_proj; it is query here"),
        (LLAMA, {"lora": {"targets": ["querry"]}}, "did you mean query\\?"),
        (LLAMA, {"lora": {"targets": ["head"]}}, "name it in lora.train"),
        (LLAMA, {"lora": {"targets": ["norm"]}}, "there are mixer.query, mixer.key"),
        (EXPERTS, {"lora": {"targets": ["gate"]}}, "gate is of a mixture's experts and routers"),
        (EXPERTS, {"lora": {"targets": ["feedforward.router"]}}, "experts and routers"),
        (LLAMA, {"lora": {"train": ["nobody"]}}, "lora.train: no parameter is called nobody"),
        (LLAMA, {"lora": {"train": ["*.query.weight"]}}, "query is trained in full and by lora"),
    ],
)
def test_what_names_nothing_is_refused(model, settings, message):
    whole = Stage.model_validate({"data": {"mine": 1}, "learning_rate": 1e-3, **settings})
    with pytest.raises(InputError, match=message):
        trained.of_stage(model, VOCABULARY, whole)


def test_words_for_people():
    part = trained.of_stage(LLAMA, VOCABULARY, stage())
    whole = table.count(LLAMA, VOCABULARY)
    assert part.words() is None
    assert part.count == whole
    size = VOCABULARY * LLAMA.width
    part = trained.of_stage(LLAMA, VOCABULARY, stage(["embedding"]))
    assert part.words() == f"trains {whole - size:,} of {whole:,} parameters"
    part = trained.of_stage(LLAMA, VOCABULARY, stage(targets=["query"], rank=2, train=["head"]))
    beside = f"and {size:,} parameters in full, of a model of {whole:,}"
    assert part.words() == f"trains 512 numbers in low-rank updates of 2 layers {beside}"


@pytest.mark.parametrize("objective", ["reward", "ppo"])
def test_a_scalar_head_is_trained_whatever_is_frozen(objective):
    for settings in ({"freeze": ["*"]}, {"freeze": ["head"]}, {"lora": 2}, {}):
        whole = Stage.model_validate(
            {"objective": objective, "data": {"mine": 1}, "learning_rate": 1e-3, **settings}
        )
        module = build(LLAMA, VOCABULARY, 0, scores=whole.scores)
        part = lora.restrict(module, whole, "rm", 0)
        assert SCORE in part.own
        moving = {n for n, p in module.named_parameters() if p.requires_grad}
        assert moving == part.own | {p.name for p in part.adapters}
        assert ("head.weight" in moving) == (settings == {} and objective == "ppo")
        assert part.count == sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert {p.name: p.shape for p in module.declared()} == {
            n: tuple(t.shape) for n, t in module.state_dict().items()
        }
        roles = {
            id(p): group["role"] for group in optim.build(module, None).param_groups for p in group["params"]
        }
        assert roles[id(module.get_parameter(SCORE))] == "head"


@pytest.mark.parametrize("freeze", [[], ["embedding"], ["matrix"]])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_flops_of_a_reward_model_have_no_logits(name, freeze, monkeypatch):
    plain_norm = lambda self, x: layers.rmsnorm_reference(x, self.weight, self.epsilon)
    monkeypatch.setattr(layers.RMSNorm, "forward", plain_norm)
    monkeypatch.setattr(attention, "attend", attention.attend_reference)
    model, batch, length = ALL[name], 2, 16
    module = build(model, VOCABULARY, seed=0, scores=True)
    whole = stage(freeze).model_copy(update={"objective": "reward"})
    part = lora.restrict(module, whole, "rm", 0)
    module.embedding.register_forward_hook(lambda layer, args, out: out.detach().requires_grad_())
    with FlopCounterMode(display=False) as counter:
        module.scores(module.hidden(torch.zeros(batch, length, dtype=torch.int64))).sum().backward()
    found = trained.flops_per_token(model, VOCABULARY, part, length)
    causal = table.flops_per_token(model, VOCABULARY, length)
    causal -= table.flops_per_token(model, VOCABULARY, length, causal=False)
    assert counter.get_total_flops() == (found - causal) * batch * length


def test_scales():
    assert Lora().scale() == 2
    assert Lora(rank=8, alpha=4).scale() == 0.5
    assert Lora(rank=16, alpha=4, rslora=True).scale() == 1
    assert Lora(rank=4, rslora=True).scale() == 4


@pytest.mark.parametrize("name", ALL)
def test_declarations_are_the_modules(name):
    """And what is declared of a layer's update divides as the layer's weight does."""
    module = build(ALL[name], VOCABULARY, 0)
    part = lora.restrict(module, stage(rank=4), "sft", 0)
    assert {p.name: p.shape for p in module.declared()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {p.name for p in part.adapters}
    weights = {p.name: p for p in table.parameters(ALL[name], VOCABULARY)}
    for a, b in zip(part.adapters[::2], part.adapters[1::2], strict=True):
        weight = weights[a.name.replace("lora_a", "weight")]
        assert (a.cut == "rowwise") == (weight.cut == "rowwise")
        assert (b.cut, b.unit) == (weight.cut, weight.unit) or weight.cut == "rowwise"


def test_learning_rates_of_a_wider_model():
    """A's falls with the width, B's does not (LoRA+)."""
    wide = LLAMA.model_copy(update={"width": 256, "heads": 16, "key_value_heads": 8, "feedforward": 384})
    mup = {"kind": "mup", "base_width": 64}
    model = Model.model_validate({**wide.model_dump(exclude_defaults=True), "parametrisation": mup})
    part = trained.of_stage(model, VOCABULARY, stage(rank=4))
    for kind in ("adamw", "soap", "muon"):
        rates = [transfer.factors(p, model, kind).learning_rate for p in part.adapters]
        assert rates[::2] == pytest.approx([1 / 4] * 14)
        assert rates[1::2] == pytest.approx([1.0] * 14)


@pytest.mark.parametrize("settings", [{"freeze": ["matrix"]}, {"freeze": ["head"]}, {"rank": 4}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_flops_equal_what_torch_counts(name, settings, monkeypatch):
    plain_norm = lambda self, x: layers.rmsnorm_reference(x, self.weight, self.epsilon)
    monkeypatch.setattr(layers.RMSNorm, "forward", plain_norm)
    monkeypatch.setattr(attention, "attend", attention.attend_reference)
    model, batch, length = ALL[name], 2, 16
    if name == "gpt2" and settings.get("freeze") == ["head"]:
        settings = {"freeze": ["embedding"]}
    module = build(model, VOCABULARY, seed=0)
    part = lora.restrict(module, stage(**settings), "sft", 0)
    # So that the gradient goes down to the first layer, as the count has it.
    module.embedding.register_forward_hook(lambda layer, args, out: out.detach().requires_grad_())
    with FlopCounterMode(display=False) as counter:
        hidden = module.hidden(torch.zeros(batch, length, dtype=torch.int64))
        module.logits(hidden).sum().backward()
    whole = trained.flops_per_token(model, VOCABULARY, part, length)
    causal = table.flops_per_token(model, VOCABULARY, length)
    causal -= table.flops_per_token(model, VOCABULARY, length, causal=False)
    assert counter.get_total_flops() == (whole - causal) * batch * length
