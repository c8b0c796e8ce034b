# ruff: noqa: E501 (tables read best with one case to a line)
"""Frequencies and tables of every kind of rotary positions, against transformers."""

import math

import pytest
import torch

from cupola.models.rope import attention_factor, frequencies, rotate, rotate_reference, rotation
from cupola.recipe.rotary import Rope

ORIGINAL = {"original_max_position_embeddings": 512}
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "yarn": {"rope_type": "yarn", "factor": 8.0, **ORIGINAL},
    "yarn-short": {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 24},
    "yarn-128k": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    "yarn-betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, **ORIGINAL},
    "yarn-one-beta": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 3.0, "beta_slow": 3.0, "truncate": False, **ORIGINAL},
    "yarn-real-bounds": {"rope_type": "yarn", "factor": 8.0, "truncate": False, **ORIGINAL},
    "yarn-cold": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, **ORIGINAL},
    "yarn-deepseek": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707, **ORIGINAL},
}  # fmt: skip
SIZES = [(16, 10000.0), (64, 500000.0), (128, 1e6), (96, 777.0)]


def embedding(parameters: dict, head_width: int, context: int = 1024):
    """Transformers' module that makes the tables of a Llama."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_width,
        num_attention_heads=4,
        head_dim=head_width,
        max_position_embeddings=context,
        rope_parameters=dict(parameters),
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.oracle
@pytest.mark.parametrize(("head_width", "theta"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_factor_are_transformers(kind, head_width, theta):
    parameters = {"rope_theta": theta, **KINDS[kind]}
    theirs, rope = embedding(parameters, head_width), Rope(**parameters)
    torch.testing.assert_close(frequencies(rope, head_width).float(), theirs.inv_freq, rtol=1e-6, atol=0)
    assert attention_factor(rope) == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_transformers(kind):
    """As far as its angles are exact: they are products in fp32."""
    parameters = {"rope_theta": 10000.0, **KINDS[kind]}
    cos, sin = embedding(parameters, 64)(torch.zeros(1), torch.arange(40)[None])
    ours = rotation(Rope(**parameters), 64, 0, 40, torch.device("cpu"))
    torch.testing.assert_close(ours.cos, cos[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.sin, sin[0, :, :32], rtol=0, atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("length", [10, 64, 65, 200, 4096])
@pytest.mark.parametrize(("head_width", "theta"), SIZES)
def test_dynamic_settles_on_what_transformers_has_for_a_text_of_that_length(head_width, theta, length):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": theta}
    config = embedding(parameters, head_width, context=64).config
    theirs, factor = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
    settled = Rope(**parameters, original_max_position_embeddings=64).at(length, head_width)
    torch.testing.assert_close(frequencies(settled, head_width).float(), theirs, rtol=1e-6, atol=0)
    assert attention_factor(settled) == factor == 1
    assert (settled.rope_type == "default") == (length > 64)


def test_dynamic_with_a_factor_of_1_is_ntk_aware_scaling():
    """theta s^(d / (d - 2)) for rows s times as long: the slowest angle is divided by s, the fastest kept."""
    rope = Rope(rope_type="dynamic", factor=1.0, original_max_position_embeddings=100)
    settled = rope.at(800, 64)
    assert settled.rope_theta == pytest.approx(10000.0 * 8 ** (64 / 62))
    before, after = frequencies(rope, 64), frequencies(settled, 64)
    torch.testing.assert_close(
        after[[0, -1]], before[[0, -1]] / torch.tensor([1.0, 8.0], dtype=torch.float64)
    )


def test_yarn_keeps_the_fast_angles_and_divides_the_slow_ones():
    rope = Rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=512)
    plain, scaled = frequencies(Rope(), 128), frequencies(rope, 128)
    turns = 512 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 40], plain[turns > 40])
    torch.testing.assert_close(scaled[turns < 0.8], plain[turns < 0.8] / 8)
    between = (turns < 25) & (turns > 1.2)
    assert between.sum() > 10
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_scores_are_colder_by_the_square_of_the_factor_and_so_are_gradients():
    rope = Rope(rope_type="yarn", factor=16.0, original_max_position_embeddings=64)
    x, device = torch.randn(2, 30, 3, 16), torch.device("cpu")
    tables = rotation(rope, 16, 0, 30, device)
    one = rotation(rope.model_copy(update={"attention_factor": 1.0}), 16, 0, 30, device)
    scale = 0.1 * math.log(16) + 1
    torch.testing.assert_close(rotate(x, tables), scale * rotate(x, one), rtol=1e-5, atol=1e-6)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(x.shape)
    (rotate(first, tables) * weights).sum().backward()
    (rotate_reference(second, tables) * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_a_kind_without_its_original_context_is_no_model(kind):
    with pytest.raises(ValueError, match="needs original_max_position_embeddings"):
        frequencies(Rope(rope_type=kind, factor=2.0), 16)
