"""Weights, gradients, masters and states: ZeRO's table, cuts, optimizers."""

import pytest

from cupola.models import table
from cupola.models.table.states import state_bytes
from cupola.plan.execution import Execution
from cupola.plan.layout import Layout
from cupola.plan.standing import Group, Held, held, standing
from cupola.recipe.loading import load_preset
from cupola.recipe.schema import Optimizer


def group(preset: str, layout: Layout, optimizer: str = "adamw", **settings) -> Group:
    model = load_preset(preset)
    return held(table.parameters(model, model.rows(8192)), layout, Optimizer(kind=optimizer), **settings)


@pytest.mark.parametrize("data", [1, 4, 16, 64])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_closed_forms_of_zero(data, stage):
    """Rajbhandari et al. 2020, section 5: (2 + 2 + K) psi, of which stages cut K, 2 + K, all; K = 12."""
    numbers = 7.5e9
    whole = {0: 16, 1: 4, 2: 2, 3: 0}[stage]
    expected = (whole + (16 - whole) / data) * numbers
    execution = Execution(precision="fp16", gradients=2, copies=True)
    parts = standing(Group(Held(numbers, numbers, 8 * numbers)), Layout(data=data, shard=stage), execution)
    assert sum(parts) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("precision", "bytes_each"),
    [("fp32", (4, 4, 0, 8)), ("bf16", (2, 4, 4, 8)), ("fp16", (2, 4, 4, 8)), ("fp8", (2, 4, 4, 8))],
)
def test_bytes_of_a_parameter(precision, bytes_each):
    parts = standing(Group(Held(1, 1, 8)), Layout(), Execution(precision=precision))
    assert parts == bytes_each


def test_fsdp_has_no_copy_in_16_bits():
    whole, layout = Group(Held(100, 100, 800)), Layout(data=4, context=5, shard=3)
    assert standing(whole, layout, Execution()) == (0, 20, 20, 40)
    assert standing(whole, Layout(shard=3), Execution()) == (200, 400, 400, 800)


def test_a_device_holds_all_of_it_where_nothing_is_cut():
    for preset in ("llama3-8b", "gpt2-small", "mixtral-8x7b", "mamba2-130m", "rwkv7-0.1b"):
        model = load_preset(preset)
        found = group(preset, Layout()).whole
        assert found.weights == found.trained == table.count(model, model.rows(8192))
        assert found.states == 8 * found.weights


def test_tensor_parallelism_cuts_matrices_and_vocabulary_but_no_norms():
    found = group("llama3-8b", Layout(tensor=8)).whole
    norms = (2 * 32 + 1) * 4096
    assert found.weights == (8_030_261_248 - norms) / 8 + norms


def test_rows_of_the_vocabulary_are_padded():
    model = load_preset("gpt2-small")
    (embedding,) = (p for p in table.parameters(model, 50257) if p.name == "embedding.weight")
    assert held([embedding], Layout(tensor=4), Optimizer()).whole.weights == 12565 * 768


def test_experts_are_cut_by_workers_that_share_them():
    model = load_preset("mixtral-8x7b")
    routed = 32 * 8 * 3 * 4096 * 14336
    layout = Layout(data=16, expert=4, shard=3)
    found = group("mixtral-8x7b", layout)
    assert found.experts.weights == routed / 4
    assert found.dense.weights == table.count(model, 32000) - routed
    assert found.sharded(layout).weights == pytest.approx(table.count(model, 32000) / 16)


def test_muon_keeps_one_number_of_a_matrix():
    model = load_preset("llama3-8b")
    matrices = sum(p.size for p in table.parameters(model, 128256) if p.role == "matrix")
    found = group("llama3-8b", Layout(), "muon").whole
    assert found.states == 8 * (found.weights - matrices) + 4 * matrices


def test_soap_keeps_covariances_and_bases_of_the_sides_that_it_rotates():
    model = load_preset("llama3-8b")
    parameters = {p.name: p for p in table.parameters(model, 128256)}
    query, key, up = (
        parameters[f"blocks.0.{name}.weight"] for name in ("mixer.query", "mixer.key", "feedforward.up")
    )
    soap = Optimizer(kind="soap")
    assert state_bytes(query, soap) == 4 * (2 + 2 * 2) * 4096**2
    assert state_bytes(key, soap) == 4 * (2 * 1024 * 4096 + 2 * (1024**2 + 4096**2))
    assert state_bytes(up, soap) == 4 * (2 * 14336 * 4096 + 2 * 4096**2)  # 14336 is above the largest side
    half = Optimizer(kind="soap", state_dtype="bf16")
    assert 2 * state_bytes(query, half) == state_bytes(query, soap)


def test_what_is_frozen_has_neither_gradient_nor_states():
    model = load_preset("llama3-8b")
    names = {p.name for p in table.parameters(model, 128256) if p.role != "head"}
    found = group("llama3-8b", Layout(), frozen=names).whole
    head = 128256 * 4096
    assert (found.weights, found.trained, found.states) == (8_030_261_248, head, 8 * head)
