"""The presets' parameter counts, against published figures and against transformers' own modules."""

import re

import pytest

from cupola.models.table import active_count, count
from cupola.recipe.loading import load_preset
from cupola.recipe.lookup import presets
from cupola.recipe.model import Model

# As the published checkpoints count: the sum over the weight files of each model card on the Hugging Face
# hub, tied heads once.
EXACT = {
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
# By the classes of transformers from the published configurations (below), RWKV-7 as the paper's table of
# RWKV7-World3 counts.
EXACT |= {
    "mamba-130m": 129_135_360,
    "mamba-370m": 371_516_416,
    "mamba-790m": 793_204_224,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
    "mamba2-130m": 128_989_632,
    "mamba2-370m": 368_346_624,
    "mamba2-780m": 780_161_280,
    "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680,
    "rwkv7-0.1b": 191_034_624,
    "rwkv7-0.4b": 450_767_872,
    "rwkv7-1.5b": 1_527_404_544,
    "rwkv7-2.9b": 2_947_735_040,
    "granite4-h-350m": 340_332_224,
    "granite4-h-1b": 1_461_538_368,
    "granite4-h-micro": 3_191_396_096,
    "granite4-h-tiny": 6_939_037_248,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
}
ACTIVE = {
    "granite4-h-tiny": 1_465_470_528,
    "qwen3-30b-a3b": 3_353_032_704,
    "mixtral-8x7b": 12_879_925_248,
}
# Brown et al. 2020, table 2.1, and half a unit of the last digit given; 350M is rounded more coarsely.
ROUNDED = {
    "gpt3-125m": (125e6, 0.5e6),
    "gpt3-350m": (350e6, 10e6),
    "gpt3-760m": (760e6, 5e6),
    "gpt3-1.3b": (1.3e9, 0.05e9),
    "gpt3-2.7b": (2.7e9, 0.05e9),
    "gpt3-6.7b": (6.7e9, 0.05e9),
    "gpt3-13b": (13.0e9, 0.05e9),
    "gpt3-175b": (175e9, 0.5e9),
}
SMALL = {"cpu-1m": 1e6, "cpu-3m": 3e6, "cpu-10m": 10e6, "cpu-30m": 30e6}
OTHER_FAMILIES = ("mamba2", "rwkv7", "hybrid", "mixture")
NOMINAL = SMALL | {f"{name}-{family}": size for name, size in SMALL.items() for family in OTHER_FAMILIES}


def parameters(name: str) -> int:
    model = load_preset(name)
    return count(model, model.rows(8192))


def test_every_preset_has_a_figure():
    assert set(presets()) == set(EXACT) | set(ROUNDED) | set(NOMINAL)


@pytest.mark.parametrize("name", EXACT)
def test_published_counts_to_the_last_parameter(name):
    assert parameters(name) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_counts_of_gpt3_within_the_papers_rounding(name):
    published, rounding = ROUNDED[name]
    assert abs(parameters(name) - published) <= rounding


@pytest.mark.parametrize("name", NOMINAL)
def test_small_presets_are_about_what_they_are_called(name):
    assert parameters(name) == pytest.approx(NOMINAL[name], rel=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_of_all_families_are_equally_large(name):
    for family in OTHER_FAMILIES:
        assert parameters(f"{name}-{family}") == pytest.approx(parameters(name), rel=0.03)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_of_mixtures(name):
    model = load_preset(name)
    assert active_count(model, model.rows(8192)) == ACTIVE[name]
    assert f"{ACTIVE[name]:,}" in presets()[name].read_text()


@pytest.mark.parametrize("name", presets())
def test_each_file_states_its_count(name):
    opening = presets()[name].read_text().split("layers:")[0]
    assert f"{parameters(name):,}" in opening
    assert "Source: " in opening or name in NOMINAL


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name for name in EXACT if not name.startswith("rwkv7")])
def test_transformers_builds_as_many(name):
    """Theirs, from the preset's settings, on the meta device: nothing is allocated."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(theirs(transformers, name, load_preset(name)))
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters(name)


def theirs(transformers, name: str, model: Model):
    """The configuration of transformers that means the same as a preset."""
    sizes = model.sizes()
    if name.startswith("gpt2"):
        return transformers.GPT2Config(
            n_layer=model.layers,
            n_embd=model.width,
            n_head=model.heads,
            n_positions=model.max_positions,
            vocab_size=model.vocabulary,
        )
    common = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.width,
        "vocab_size": model.vocabulary,
        "tie_word_embeddings": model.tied,
    }
    if model.family == "mamba":
        return transformers.MambaConfig(**common)
    inner = {
        "n_heads": model.mamba2.heads(model.width),
        "d_state": model.mamba2.state,
        "n_groups": model.mamba2.groups,
    }
    if model.family == "mamba2":
        named = {"num_heads": inner["n_heads"], "state_size": inner["d_state"], "n_groups": inner["n_groups"]}
        return transformers.Mamba2Config(**common, **named, head_dim=model.mamba2.head_width)
    common |= {
        "num_attention_heads": model.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "max_position_embeddings": model.max_positions,
    }
    experts = model.experts
    if model.family == "hybrid":
        return transformers.GraniteMoeHybridConfig(
            **common,
            **{f"mamba_{key}": value for key, value in inner.items()},
            mamba_d_head=model.mamba2.head_width,
            layer_types=["mamba" if kind == "mamba2" else kind for kind in model.mixers()],
            shared_intermediate_size=experts.shared if experts else sizes.feedforward,
            num_local_experts=experts.count if experts else 0,
            num_experts_per_tok=experts.active if experts else 0,
            intermediate_size=experts.width if experts else sizes.feedforward,
        )
    if experts:
        common |= {"num_local_experts": experts.count, "num_experts_per_tok": experts.active}
        if not name.startswith("qwen3"):
            return transformers.MixtralConfig(**common, intermediate_size=experts.width)
        width = {"moe_intermediate_size": experts.width, "head_dim": sizes.head_width}
        return transformers.Qwen3MoeConfig(**common, **width)
    kind = transformers.Qwen3Config if name.startswith("qwen3") else transformers.LlamaConfig
    return kind(**common, head_dim=sizes.head_width, intermediate_size=sizes.feedforward)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "kind"), [("gpt2-small", "GPT2Config"), ("llama2-7b", "LlamaConfig")])
def test_settings_that_no_count_shows(name, kind):
    """transformers' defaults are those of GPT-2 small and Llama 2 7B (but for Llama's epsilon, 1e-5)."""
    config = getattr(pytest.importorskip("transformers"), kind)()
    model = load_preset(name)
    if kind == "GPT2Config":
        assert (config.activation_function, model.activation) == ("gelu_new", "gelu_tanh")
        assert config.layer_norm_epsilon == model.norm_epsilon
        assert config.n_positions == model.max_positions
    else:
        assert config.rope_parameters["rope_theta"] == model.rope.rope_theta
        assert (config.hidden_act, model.activation) == ("silu", "swiglu")
        assert model.norm_epsilon == 1e-5


def test_contexts_and_positions():
    """From the published configurations."""
    known = {
        "llama2": (4096, 10_000.0, "default"),
        "llama3": (8192, 500_000.0, "default"),
        "llama3.1": (131_072, 500_000.0, "llama3"),
        "qwen3": (40_960, 1_000_000.0, "default"),
    }
    for name in presets():
        family = re.sub(r"-[^-]*$", "", name)
        if family in known:
            model = load_preset(name)
            assert (model.max_positions, model.rope.rope_theta, model.rope.rope_type) == known[family]
