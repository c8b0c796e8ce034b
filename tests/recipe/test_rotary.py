# ruff: noqa: E501 (tables read best with one case to a line)
"""Rotary positions of stages: what passes on, what is taken from the stages before, what is refused."""

from pathlib import Path

import pytest
import yaml

from cupola.errors import InputError
from cupola.recipe.loading import dump, load
from cupola.recipe.rotary import Rope, notes
from tests.recipe.whole_recipe import WHOLE

LONG = "data: {mine: 1}, tokens: 1k tokens, learning_rate: 1, batch_tokens: 4096"


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(WHOLE)


def with_stages(*stages: str, more: tuple[str, ...] = ()):
    """The whole recipe with further stages, each `name: settings`."""
    written = [text.partition(": ") for text in stages]
    return load("r.yaml", [*(f"stages.{name}={{{LONG}, {text}}}" for name, _, text in written), *more])


YARN = "rope: {rope_type: yarn, factor: 4}"


def test_a_stage_has_the_rope_that_it_states_and_so_have_those_after_it():
    recipe = with_stages(f"long: sequence_length: 256, {YARN}", "more: sequence_length: 128")
    yarn = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    assert [recipe.model_of(name).rope for name in recipe.stages] == [Rope(), yarn, yarn]
    assert recipe.model_of("pretrain") is recipe.model
    # The context of the weights, not the rows of the stage that came after.
    assert [recipe.model_of(name).max_positions for name in recipe.stages] == [None, 256, 256]
    assert recipe.model_of("more") == recipe.model_of("long")


def test_the_base_passes_on_and_the_scaling_is_as_stated():
    recipe = with_stages(
        "base: sequence_length: 128, rope: {rope_theta: 500000}",
        f"long: sequence_length: 256, {YARN}",
        "back: sequence_length: 256, rope: {rope_type: default}",
        more=("model.rope.rope_theta=1e6",),
    )
    ropes = {name: recipe.model_of(name).rope for name in recipe.stages}
    assert [rope.rope_theta for rope in ropes.values()] == [1e6, 5e5, 5e5, 5e5]
    assert ropes["long"].original_max_position_embeddings == 128
    assert ropes["back"] == Rope(rope_theta=5e5)


def test_the_original_context_is_the_longest_row_that_was_not_stretched():
    """A second extension is one of the same angles, so it counts from the same context."""
    recipe = with_stages(
        "wider: sequence_length: {0%: 32, 50%: 128}",
        f"long: sequence_length: 512, {YARN}",
        "longer: sequence_length: 2048, rope: {rope_type: yarn, factor: 16}",
        "other: sequence_length: 2048, rope: {rope_type: llama3, factor: 16, original_max_position_embeddings: 99}",
    )
    originals = [
        stage.rope and stage.rope.original_max_position_embeddings for stage in recipe.stages.values()
    ]
    assert originals == [None, None, 128, 128, 99]


def test_a_model_that_is_stretched_from_the_beginning_says_from_what():
    llama3 = "{rope_type: llama3, factor: 8, original_max_position_embeddings: 8192, rope_theta: 5e5}"
    recipe = with_stages(f"long: sequence_length: 128, {YARN}", more=(f"model.rope={llama3}",))
    assert recipe.model_of("long").rope == Rope(
        rope_theta=5e5, rope_type="yarn", factor=4.0, original_max_position_embeddings=8192
    )


def test_dynamic_is_a_base_for_the_longest_row():
    """theta (factor L / original - factor + 1)^(d / (d - 2)), heads of 16 channels."""
    recipe = with_stages(
        "long: sequence_length: {0%: 128, 50%: 256}, rope: {rope_type: dynamic, factor: 2}",
        "short: sequence_length: 32",
    )
    for name in ("long", "short"):
        rope = recipe.model_of(name).rope
        assert rope.rope_type == "default"
        assert rope.rope_theta == pytest.approx(10000 * (2 * 256 / 64 - 1) ** (16 / 14))


@pytest.mark.parametrize("exclude_defaults", [False, True], ids=["shown", "recorded"])
def test_a_resolved_recipe_loads_to_the_same(exclude_defaults):
    """Also as a run records it, without what is as by default: the stage's base is, the model's is not."""
    recipe = with_stages(
        f"long: sequence_length: 256, {YARN[:-1]}, rope_theta: 10000}}",
        "last: sequence_length: 256, rope: {rope_type: dynamic, factor: 1}",
        "end: sequence_length: 128",
        more=("model.rope.rope_theta=5e5",),
    )
    values = recipe.model_dump(mode="json", exclude_defaults=True) if exclude_defaults else dump(recipe)
    Path("again.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    again = load("again.yaml")
    assert again == recipe
    assert [again.model_of(name) for name in again.stages] == [
        recipe.model_of(name) for name in recipe.stages
    ]
    assert again.model_of("long").rope.rope_theta == 10000
    assert values["stages"]["long"]["rope"]["original_max_position_embeddings"] == 64
    assert "rope" not in values["stages"]["pretrain"]


def test_what_a_model_shows_of_its_rope_is_what_it_has():
    """Keys of stages are digests of it: a new kind's settings must not change those of the others."""
    assert set(dump(load("r.yaml"))["model"]["rope"]) == {
        "rope_theta",
        "rope_type",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
    }


@pytest.mark.parametrize(
    ("stages", "more", "line"),
    [
        (["long: rope: {rope_type: yarn}"], [], "stages.long.rope.factor: is missing: by how much yarn stretches"),
        (["long: rope: {rope_type: yarn, factor: 0.5}"], [], "stages.long.rope.factor: must be at least 1"),
        (["long: rope: {factor: 4}"], [], "stages.long.rope.factor: has no effect without rope_type linear or"),
        (["long: rope: {rope_type: linear, factor: 4, beta_fast: 3}"], [], "rope.beta_fast: has no effect without rope_type yarn"),
        (["long: rope: {rope_type: yarn, factor: 4, beta_slow: 64}"], [], "rope.beta_slow: must not be above beta_fast 32.0"),
        (["long: rope: {rope_type: yarn, factor: 4, mscale: 1}"], [], "rope.mscale: has no effect without mscale_all_dim"),
        (["long: rope: {rope_type: yarn, factor: 4, mscale: 1, mscale_all_dim: 1, attention_factor: 1}"], [], "rope.mscale: has no effect beside attention_factor"),
        (["long: rope: {rope_type: yarn, factor: 4, rope_theta: 1}"], [], "rope.rope_theta: must be above 1 for yarn"),
        (["long: rope: {rope_type: llama3, factor: 4, low_freq_factor: 9}"], [], "rope.low_freq_factor: must be below high_freq_factor 4.0"),
        (["long: rope: {rope_type: longrope, factor: 4}"], [], "rope.rope_type: default, linear, dynamic, yarn, llama3 are possible"),
        ([f"long: carry: [], {YARN}"], [], "stages.long.rope: rope_type yarn needs original_max_position_embeddings"),
        ([], [f"stages.pretrain.{YARN.replace(': ', '=', 1)}"], "rope_type yarn needs original_max_position_embeddings"),
        ([], ["model.rope={rope_type: yarn, factor: 2}"], "rope_type yarn needs original_max_position_embeddings"),
        ([], ["model.rope={rope_type: linear}"], "model.rope.factor: is missing"),
        (["long: rope: {rope_type: dynamic, factor: 2}"], ["model.head_width=2"], "dynamic needs heads of more than 2 channels"),
        ([f"long: {YARN}"], ["model.positions=none"], "stages.long.rope: has no effect: the model has no rotary attention"),
        ([f"long: {YARN}"], ["model.positions=learned", "model.max_positions=64"], "stages.long.rope: has no effect: the model has no rotary attention"),
        ([f"long: {YARN}"], ["model={family: mamba2, heads: null}"], "stages.long.rope: has no effect: the model has no rotary attention"),
        ([f"long: {YARN}"], ["model={family: rwkv7, heads: null}"], "stages.long.rope: has no effect: the model has no rotary attention"),
    ],
)  # fmt: skip
def test_what_is_refused(stages, more, line):
    with pytest.raises(InputError) as caught:
        with_stages(*stages, more=tuple(more))
    message = str(caught.value)
    assert "\n" not in message
    # A key that an override names is not named twice.
    where, _, what = line.partition(": ")
    assert line in message or (where in message and what in message)


def test_a_hybrid_has_rope_where_it_has_attention():
    more = ("model={family: hybrid, pattern: [mamba2, attention], mamba2: {head_width: 16}}",)
    recipe = with_stages(f"long: sequence_length: 256, {YARN}", more=more)
    assert recipe.model_of("long").rope.rope_type == "yarn"


def test_what_a_person_hears():
    yarn = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    assert notes(Rope(), Rope(), 64) == []
    assert notes(yarn, yarn, 256) == ["rotary positions yarn, factor 4 of 64 tokens"]
    _, beyond = notes(yarn, yarn, 300)
    assert "rows of 300 tokens are longer than 64 times the factor 4" in beyond
    assert "a factor of 5 reaches it" in beyond
    dynamic = Rope(rope_type="dynamic", factor=1.0, original_max_position_embeddings=64)
    [line] = notes(dynamic, dynamic.at(256, 64), 256)
    assert line == "rotary positions dynamic, factor 1 of 64 tokens: rope_theta 10000 becomes 41829.4"
