"""The parameter table: equal to the built module, and to FLOPs counted by torch."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cupola.models import attention, build, layers, table
from cupola.recipe.loading import load_preset
from cupola.recipe.lookup import presets
from cupola.recipe.model import Model
from tests.models.small_models import ALL, GPT2, LLAMA

VOCABULARY = 97


def declared(model: Model, vocabulary: int) -> dict[str, tuple[int, ...]]:
    return {p.name: p.shape for p in table.parameters(model, vocabulary)}


@pytest.mark.parametrize("name", ALL)
def test_table_equals_the_built_module(name):
    module = build(ALL[name], VOCABULARY, seed=0)
    assert list(declared(ALL[name], VOCABULARY).items()) == [
        (n, tuple(t.shape)) for n, t in module.state_dict().items()
    ]
    buffers = [p.name for p in table.parameters(ALL[name], VOCABULARY) if p.role == "buffer"]
    assert buffers == [n for n, _ in module.named_buffers()]


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_built_as_declared(name):
    """In full on the meta device (the published counts stand in tests/recipe), and in small for real."""
    model = load_preset(name)
    vocabulary = model.rows(8192)
    module = build(model, vocabulary, seed=0, device="meta")
    assert declared(model, vocabulary) == {n: tuple(p.shape) for n, p in module.state_dict().items()}
    assert table.count(model, vocabulary) == sum(p.numel() for p in module.parameters())

    small = shrunk(model)
    built = build(small, VOCABULARY, seed=0)
    assert declared(small, VOCABULARY) == {
        n: tuple(t.shape) for n, t in built.state_dict().items() if not (small.tied and n == "head.weight")
    }
    assert built.hidden(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, small.width)


def shrunk(model: Model) -> Model:
    """The same kinds of layers, few and narrow."""
    group = (model.heads or 1) // (model.sizes().key_value_heads or 1)
    sizes = {"width": 16 * group, "feedforward": 40 if model.feedforward else None}
    sizes["layers"] = min(model.layers, len(model.pattern)) if model.pattern else 2
    if model.heads:
        sizes |= {"heads": group, "key_value_heads": 1, "head_width": 16 if model.head_width else None}
    if model.experts:
        sizes["experts"] = model.experts.model_copy(update={"count": 4, "active": 2, "width": 24})
    sizes["mamba2"] = model.mamba2.model_copy(update={"head_width": 16, "state": 8})
    sizes["rwkv7"] = model.rwkv7.model_copy(update={"head_width": 16})
    return model.model_copy(update=sizes)


def test_a_tied_head_is_an_embedding():
    untied = {p.role: p.shape for p in table.parameters(LLAMA, VOCABULARY)}
    assert untied["embedding"] == untied["head"] == (VOCABULARY, LLAMA.width)
    assert "head" not in {p.role for p in table.parameters(GPT2, VOCABULARY)}


@pytest.mark.parametrize("name", ALL)
def test_every_cut_divides_and_keeps_heads_together(name):
    model, tensor = ALL[name], 2
    sizes = model.sizes()
    group = sizes.heads // max(1, sizes.key_value_heads)
    for parameter in table.parameters(model, 96):
        if parameter.cut == "colwise":
            assert parameter.shape[-2:][0] % (tensor * parameter.unit) == 0
        if parameter.cut == "rowwise":
            assert parameter.shape[-1] % tensor == 0
        if ".query." in parameter.name:
            assert parameter.unit == group * model.sizes().head_width
        if "query_norm" in parameter.name or "key_norm" in parameter.name:
            assert parameter.cut == "replicate_by_head"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_flops_equal_what_torch_counts(name, monkeypatch):
    """torch counts the products of the plain formulas, whose attention does the masked half too."""
    plain_norm = lambda self, x: layers.rmsnorm_reference(x, self.weight, self.epsilon)
    monkeypatch.setattr(layers.RMSNorm, "forward", plain_norm)
    monkeypatch.setattr(attention, "attend", attention.attend_reference)
    model, batch, length = ALL[name], 2, 16
    module = build(model, VOCABULARY, seed=0)
    with FlopCounterMode(display=False) as counter:
        hidden = module.hidden(torch.zeros(batch, length, dtype=torch.int64))
        module.logits(hidden).sum().backward()
    expected = table.flops_per_token(model, VOCABULARY, length, causal=False) * batch * length
    assert counter.get_total_flops() == expected


def test_a_causal_mask_leaves_half_of_attention():
    whole = 12 * LLAMA.layers * LLAMA.heads * LLAMA.sizes().head_width * 128
    full = table.flops_per_token(LLAMA, VOCABULARY, 128, causal=False)
    assert full - table.flops_per_token(LLAMA, VOCABULARY, 128) == whole / 2


def test_the_table_needs_no_torch():
    code = "import sys, cupola.models.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
