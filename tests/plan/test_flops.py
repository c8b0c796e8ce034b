"""FLOPs under each convention: the closed forms as they are printed, and every family."""

import pytest

from cupola.models import table
from cupola.plan import flops
from cupola.recipe.loading import load_preset
from cupola.recipe.lookup import presets
from cupola.recipe.model import Experts, Model

GPT = {"activation": "gelu_tanh", "norm": "layernorm", "positions": "learned", "tied": True}
BIASES = {"attention_bias": True, "output_bias": True, "feedforward_bias": True}


def gpt(layers: int, width: int, heads: int, sequence: int, tied: bool = True) -> Model:
    shape = {"layers": layers, "width": width, "heads": heads, "max_positions": sequence}
    return Model.model_validate(GPT | BIASES | shape | {"tied": tied})


@pytest.mark.parametrize(
    ("layers", "width", "heads", "sequence", "vocabulary", "batch"),
    [
        (24, 2304, 24, 2048, 51200, 512),
        (128, 25600, 160, 2048, 51200, 3072),
        (30, 4096, 32, 4096, 131072, 192),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_megatron_is_its_closed_form(layers, width, heads, sequence, vocabulary, batch, tied):
    """Narayanan et al. 2021: F = 96 B s L h^2 (1 + s/6h + V/16Lh), and 72 ... V/12Lh without recomputing."""
    model = gpt(layers, width, heads, sequence, tied)
    base = batch * sequence * layers * width**2
    spread = sequence / (6 * width)
    hardware = 96 * base * (1 + spread + vocabulary / (16 * layers * width))
    plain = 72 * base * (1 + spread + vocabulary / (12 * layers * width))
    assert flops.per_step(model, vocabulary, sequence, batch, "megatron_recompute") == pytest.approx(hardware)
    assert flops.per_step(model, vocabulary, sequence, batch, "megatron") == pytest.approx(plain)


def test_megatron_2021_total_of_gpt3():
    """Their equation 4 says 1,024 A100 at 140 TFLOP/s train GPT-3's 300B tokens in 34 days."""
    model = gpt(96, 12288, 96, 2048)
    total = flops.per_token(model, 51200, 2048, "megatron_recompute") * 300e9
    assert total / (1024 * 140e12) / 86400 == pytest.approx(34, abs=1)


def test_palm_and_6nd():
    """6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B); GPT-3's table D.1 has 3.14e23 for 300B tokens."""
    model = load_preset("gpt3-175b")
    n = table.count(model, 50257)
    assert flops.per_token(model, 50257, 2048, "6nd") == 6 * n
    assert 6 * n * 300e9 == pytest.approx(3.14e23, rel=2e-3)
    assert flops.per_token(model, 50257, 2048, "palm") == pytest.approx(6 * n + 12 * 96 * 12288 * 2048)


def test_bridge_of_a_llama():
    """6 (N - input embedding) + 6 L d s, but for the norms' vectors."""
    model = load_preset("llama3.1-405b")
    n = table.count(model, 128256)
    closed = 6 * (n - 128256 * 16384) + 6 * 126 * 16384 * 8192
    norms = 6 * (2 * 126 + 1) * 16384
    assert flops.per_token(model, 128256, 8192, "bridge") == pytest.approx(closed - norms, rel=1e-12)


def test_bridge_counts_the_head_of_a_tied_model():
    tied, own = gpt(4, 256, 4, 512), gpt(4, 256, 4, 512, tied=False)
    for name in ("bridge", "megatron", "exact"):
        assert flops.per_token(tied, 1000, 512, name) == flops.per_token(own, 1000, 512, name)


def test_a_mixture_counts_the_experts_of_a_token():
    model = load_preset("qwen3-30b-a3b")
    router = 6 * 48 * 2048 * 128
    layer = 2048 * 128 * (2 * 32 + 2 * 4) + 8 * 3 * 2048 * 768
    attention = 6 * 48 * 32 * 128 * 4096
    by_hand = 6 * (48 * layer + 151936 * 2048) + attention
    assert flops.per_token(model, 151936, 4096, "bridge") == by_hand
    assert flops.per_token(model, 151936, 4096, "exact") == by_hand + router
    assert flops.per_token(model, 151936, 4096, "6nd") == 6 * 3_353_032_704


def test_a_window_counts_where_it_is_known():
    shape = {"layers": 4, "width": 256, "heads": 4}
    full = Model.model_validate(shape)
    sliding = Model.model_validate(shape | {"pattern": ["sliding_attention", "attention"], "window": 64})
    for name in ("palm", "megatron", "megatron_recompute"):
        assert flops.per_token(sliding, 1000, 1024, name) == flops.per_token(full, 1000, 1024, name)
    for name in ("bridge", "exact", "exact_full"):
        assert flops.per_token(sliding, 1000, 1024, name) < flops.per_token(full, 1000, 1024, name)


def test_mamba2_is_megatrons_formula():
    """Megatron's hybrids: 2 h (2 d + 2 G N + heads) + 7 d N + 2 d h a layer, forward; d = 2 h."""
    model = load_preset("mamba2-1.3b")
    settings = model.mamba2
    h, inner = model.width, 2 * model.width
    layer = 2 * h * (2 * inner + 2 * settings.groups * settings.state + settings.heads(h))
    layer += 7 * inner * settings.state + 2 * inner * h
    head = 2 * h * 50288
    assert flops.per_token(model, 50288, 2048, "megatron") == pytest.approx(3 * (model.layers * layer + head))
    assert flops.per_token(model, 50288, 2048, "bridge") == pytest.approx(3 * (model.layers * layer + head))


@pytest.mark.parametrize("family", ["mamba-130m", "mamba2-130m", "rwkv7-0.1b"])
def test_a_recurrence_costs_the_same_at_any_length(family):
    model = load_preset(family)
    for name in flops.CONVENTIONS:
        short = flops.per_token(model, 50288, 128, name)
        assert short == flops.per_token(model, 50288, 65536, name)
        assert short >= 0.9 * flops.per_token(model, 50288, 128, "exact")


@pytest.mark.parametrize("name", presets())
def test_every_preset_under_every_convention(name):
    """They agree within what their definitions differ by."""
    model = load_preset(name)
    vocabulary = model.rows(8192)
    own = {key: flops.per_token(model, vocabulary, 512, key) for key in flops.CONVENTIONS}
    matrices = flops.work(model, vocabulary, 512, causal=True)
    whole = matrices.matrices + matrices.router + matrices.convolution + matrices.mixing + matrices.head
    assert own["exact"] == pytest.approx(3 * whole, rel=1e-12)
    # Megatron's scan of Mamba-2 weighs in where the head is small.
    near = 0.15 if "mamba2" in model.mixers() else 0.01
    assert own["bridge"] == pytest.approx(own["exact"], rel=near)
    assert own["megatron"] == pytest.approx(own["exact_full"], rel=near)
    assert own["exact"] <= own["exact_full"]
    assert own["megatron"] < own["megatron_recompute"] <= 4 / 3 * own["megatron"]
    assert own["6nd"] <= own["palm"]


def test_first_dense_layers_and_a_shared_expert():
    experts = Experts(count=8, active=2, width=64, shared=96, first_dense=1)
    model = Model(layers=3, width=128, heads=4, feedforward=256, experts=experts)
    attention = 4 * 128 * 128
    dense, mixture = 3 * 128 * 256, 3 * 128 * (2 * 64 + 96)
    by_hand = 6 * (3 * attention + dense + 2 * mixture + 1000 * 128) + 6 * 3 * 128 * 512
    assert flops.per_token(model, 1000, 512, "bridge") == by_hand


def test_conventions_say_what_they_are():
    for name, convention in flops.CONVENTIONS.items():
        assert convention.definition
        assert convention.source
        assert convention.hardware == (name == "megatron_recompute")
