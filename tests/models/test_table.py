"""The parameter table: equal to the built module, to published counts, and to FLOPs counted by torch."""

import subprocess
import sys

import pytest
import torch
from small_models import ALL, GPT2, LLAMA, QWEN3
from torch.utils.flop_counter import FlopCounterMode

from cupola.models import attention, build, layers, table
from cupola.recipe.schema import Model

VOCABULARY = 97
GPT2_SMALL = GPT2.model_copy(update={"layers": 12, "width": 768, "heads": 12, "max_positions": 1024})
PUBLISHED = [
    # Sizes from the models' own config.json; counts as their authors' checkpoints hold them.
    ("gpt2", GPT2_SMALL, 50257, 124_439_808),
    (
        "gpt2-xl",
        GPT2_SMALL.model_copy(update={"layers": 48, "width": 1600, "heads": 25}),
        50257,
        1_557_611_200,
    ),
    ("llama2-7b", Model(layers=32, width=4096, heads=32, feedforward=11008), 32000, 6_738_415_616),
    (
        "llama3-8b",
        Model(layers=32, width=4096, heads=32, key_value_heads=8, feedforward=14336),
        128256,
        8_030_261_248,
    ),
    (
        "qwen3-0.6b",
        QWEN3.model_copy(
            update={
                "layers": 28,
                "width": 1024,
                "heads": 16,
                "key_value_heads": 8,
                "head_width": 128,
                "feedforward": 3072,
            }
        ),
        151936,
        596_049_920,
    ),
]


def declared(model: Model, vocabulary: int) -> dict[str, tuple[int, ...]]:
    return {p.name: p.shape for p in table.parameters(model, vocabulary)}


@pytest.mark.parametrize("name", ALL)
def test_table_equals_the_built_module(name):
    module = build(ALL[name], VOCABULARY, seed=0)
    built = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert list(declared(ALL[name], VOCABULARY).items()) == list(built.items())


@pytest.mark.parametrize(("name", "model", "vocabulary", "expected"), PUBLISHED)
def test_published_counts_in_the_table_and_on_the_meta_device(name, model, vocabulary, expected):
    module = build(model, vocabulary, seed=0, device="meta")
    assert declared(model, vocabulary) == {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert table.count(model, vocabulary) == expected
    assert sum(p.numel() for p in module.parameters()) == expected


def test_counts_by_role_add_up_and_a_tied_head_is_an_embedding():
    counts = table.count_by_role(LLAMA, VOCABULARY)
    assert sum(counts.values()) == table.count(LLAMA, VOCABULARY)
    assert counts["embedding"] == counts["head"] == VOCABULARY * LLAMA.width
    assert "head" not in table.count_by_role(GPT2, VOCABULARY)


@pytest.mark.parametrize("name", ALL)
def test_every_cut_divides_and_keeps_heads_together(name):
    model, tensor = ALL[name], 2
    group = model.heads // model.sizes().key_value_heads
    for parameter in table.parameters(model, 96):
        if parameter.cut == "colwise":
            assert parameter.shape[0] % (tensor * parameter.unit) == 0
        if parameter.cut == "rowwise":
            assert parameter.shape[1] % tensor == 0
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
        hidden = module(torch.zeros(batch, length, dtype=torch.int64))
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
