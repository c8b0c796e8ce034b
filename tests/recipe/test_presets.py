"""The presets' parameter counts, against published figures and against transformers' own modules."""

import re

import pytest

from cupola.models.table import count
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
NOMINAL = {"cpu-1m": 1e6, "cpu-3m": 3e6, "cpu-10m": 10e6, "cpu-30m": 30e6}


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


@pytest.mark.parametrize("name", presets())
def test_each_file_states_its_count(name):
    opening = presets()[name].read_text().split("layers:")[0]
    assert f"{parameters(name):,}" in opening
    assert "Source: " in opening or name in NOMINAL


@pytest.mark.oracle
@pytest.mark.parametrize("name", EXACT)
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
    kind = transformers.Qwen3Config if name.startswith("qwen3") else transformers.LlamaConfig
    return kind(
        num_hidden_layers=model.layers,
        hidden_size=model.width,
        num_attention_heads=model.heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_width,
        intermediate_size=sizes.feedforward,
        vocab_size=model.vocabulary,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=model.tied,
    )


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
