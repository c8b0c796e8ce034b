"""The `model:` block: patterns, families, and what each family asks of its settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cupola.errors import InputError
from cupola.recipe.loading import dump, load
from cupola.recipe.model import Model, Ranks
from tests.recipe.whole_recipe import WHOLE

HYBRID = "{family: hybrid, layers: 4, width: 64, heads: 4"


def load_with(model: str):
    """A recipe with this `model:` block."""
    Path("r.yaml").write_text(
        WHOLE.replace("model:\n  layers: 2\n  width: 64\n  heads: 4", f"model: {model}")
    )
    return load("r.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (["mamba2 * 3", "attention"], ("mamba2",) * 3 + ("attention",)),
        (["mamba2 \u00d7 2", " rwkv7"], ("mamba2", "mamba2", "rwkv7")),
        ("mamba2*2, sliding_attention", ("mamba2", "mamba2", "sliding_attention")),
        (["mamba"], ("mamba",)),
    ],
)
def test_patterns(pattern, expected):
    model = Model(family="hybrid", layers=2 * len(expected), width=64, pattern=pattern)
    assert model.pattern == expected
    assert model.mixers() == expected * 2


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (["mambo"], "'mambo' is no block; there are attention, sliding_attention, mamba, mamba2, rwkv7"),
        (["mamba2 * x"], "'mamba2 * x' repeats no whole number of times, such as mamba2 * 3"),
        (["mamba2 * 0"], "repeats no whole number of times"),
        (["mamba2 * 1000000000000"], "repeats no whole number of times"),
        ([], "a list of blocks is expected, such as [mamba2 * 3, attention]"),
        (3, "a list of blocks is expected"),
    ],
)
def test_no_patterns(pattern, line):
    with pytest.raises(ValidationError) as caught:
        Model(family="hybrid", layers=2, width=64, pattern=pattern)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("{layers: 2, width: 64}", "model.heads: is missing (the number of attention's query heads)"),
        (
            "{family: hybrid, layers: 2, width: 64}",
            "model.pattern: family hybrid needs its blocks, such as [mamba2 * 3, attention]",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, pattern: [attention]}",
            "model.pattern: family mamba2 has no attention; take family hybrid, or remove it",
        ),
        (
            HYBRID + ", pattern: [mamba2 * 2, attention]}",
            "model.pattern: 4 layers are no whole repetitions of 3 blocks; change either",
        ),
        (
            HYBRID + ", pattern: [mamba2, sliding_attention]}",
            "model.window: is missing (how many tokens sliding_attention sees)",
        ),
        (
            "{layers: 2, width: 64, heads: 4, window: 8}",
            "model.window: has no effect without sliding_attention; remove it",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, heads: 4}",
            "model.heads: has no effect without attention in the model; remove it",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, qk_norm: true}",
            "model.qk_norm: has no effect without attention",
        ),
        (
            "{layers: 2, width: 64, heads: 4, mamba2: {state: 8}}",
            "model.mamba2: has no effect without a block of mamba2 in the model",
        ),
        (
            "{family: mamba2, layers: 2, width: 80, mamba2: {head_width: 64}}",
            "model.mamba2.head_width: expansion * width 160 is not divisible by head_width 64; take 40 or 80",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, mamba2: {head_width: 32, groups: 3}}",
            "model.mamba2.groups: 4 heads can't be shared among 3 groups; take a divisor",
        ),
        (
            "{family: rwkv7, layers: 2, width: 80}",
            "model.rwkv7.head_width: width 80 is not divisible by head_width 64; take 40 or 80",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, mamba2: {head_width: 1024}}",
            "model.mamba2.head_width: expansion * width 128 is not divisible by head_width 1024; take 128",
        ),
        (
            "{layers: 99999999999, width: 64, heads: 4}",
            "model.layers: must be at most 10000, not 99999999999",
        ),
        (
            "{layers: 2, width: 64, heads: 4, experts: {count: 4, active: 5, width: 8}}",
            "model.experts.active: 5 is more than there are, 4",
        ),
        (
            "{layers: 2, width: 64, heads: 4, activation: gelu, experts: {count: 4, active: 2, width: 8}}",
            "model.activation: experts are gated: take swiglu, or remove experts",
        ),
        (
            "{layers: 2, width: 64, heads: 4, experts: {count: 4, active: 2, width: 8, first_dense: 2}}",
            "model.experts.first_dense: leaves none of 2 layers to experts",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, experts: {count: 4, active: 2, width: 8}}",
            "model.experts: family mamba2 has no feed-forward layer that they could replace",
        ),
        (
            "{layers: 2, width: 64, heads: 4, positions: none, rope: {factor: 2}}",
            "model.rope: has no effect with positions none; remove it",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, feedforward: 99}",
            "model.feedforward: has no effect without a dense feed-forward layer in the model; remove it",
        ),
        (
            "{family: rwkv7, layers: 2, width: 64, activation: gelu}",
            "model.activation: has no effect without a feed-forward layer in the model; remove it",
        ),
        (
            "{family: mamba2, layers: 2, width: 64, max_positions: 99}",
            "model.max_positions: has no effect without attention",
        ),
        (
            "{layers: 2, width: 64, heads: 4,"
            " experts: {count: 4, active: 2, width: 8, balance: bias, balance_weight: 0.5}}",
            "model.experts.balance_weight: has no effect without balance auxiliary",
        ),
        (
            HYBRID
            + ", pattern: [attention, rwkv7], experts: {count: 4, active: 2, width: 8, first_dense: 3}}",
            "model.experts.first_dense: leaves none of 4 layers to experts; lower it",
        ),
    ],
)
def test_what_does_not_fit_is_named(model, line):
    with pytest.raises(InputError) as caught:
        load_with(model)
    assert line in str(caught.value)


def test_rwkv7_has_its_norms_unless_others_are_stated():
    assert Model(family="rwkv7", layers=1, width=64).norm == "layernorm"
    assert Model(family="rwkv7", layers=1, width=64).embedding_norm
    assert Model(family="rwkv7", layers=1, width=64, norm="rmsnorm").norm == "rmsnorm"
    assert not Model(layers=1, width=64, heads=1).embedding_norm


def test_ranks_follow_the_published_trainer():
    """max(32, round(factor sqrt(width) / 32) 32), factors 2.5, 2.5, 1.7 and 5."""
    model = Model(family="rwkv7", layers=1, width=768)
    assert model.rwkv7.ranks(768) == Ranks(decay=64, rate=64, value=32, gate=128)
    assert model.rwkv7.ranks(2048) == Ranks(decay=128, rate=128, value=64, gate=224)
    assert model.rwkv7.ranks(64) == Ranks(decay=32, rate=32, value=32, gate=32)


def test_a_resolved_recipe_shows_only_what_the_family_has():
    shown = dump(load_with("{family: mamba2, layers: 2, width: 64}"))["model"]
    assert shown["mamba2"]["state"] == 128
    assert not {"heads", "rope", "rwkv7", "mamba", "positions"} & set(shown)
    shown = dump(load_with("{layers: 2, width: 64, heads: 4}"))["model"]
    assert "rope" in shown
    assert not {"rwkv7", "mamba", "mamba2"} & set(shown)
