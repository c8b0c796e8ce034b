"""Layouts: what a rank holds, how many microbatches, and what can't be."""

import pytest

from cupola.plan.layout import Layout, faults
from cupola.recipe.loading import load_preset

LLAMA = load_preset("llama3-8b")
VOCABULARY = 128256


def problems(devices=8, batch=None, length=8192, model=LLAMA, **settings):
    return faults(model, VOCABULARY, Layout(**settings), devices, length, batch)


def test_layers_are_shared_out_evenly_with_more_in_the_middle():
    ranks = Layout(pipeline=4).stages(34)
    assert [len(stage.layers) for rank in ranks for stage in rank] == [8, 9, 9, 8]
    assert [(stage.first, stage.last) for rank in ranks for stage in rank][::3] == [
        (True, False),
        (False, True),
    ]
    assert [layer for rank in ranks for stage in rank for layer in stage.layers] == list(range(34))


def test_chunks_go_round_and_a_v_comes_back():
    ranks = Layout(pipeline=2, schedule="interleaved", chunks=2).stages(8)
    assert [[stage.layers.start for stage in rank] for rank in ranks] == [[0, 4], [2, 6]]
    ranks = Layout(pipeline=2, schedule="zb-v").stages(8)
    assert [[stage.layers.start for stage in rank] for rank in ranks] == [[0, 6], [2, 4]]
    assert (ranks[0][0].first, ranks[0][1].last) == (True, True)


def test_microbatches_in_flight():
    def held(schedule, rank, microbatches=32, **settings):
        return Layout(pipeline=8, schedule=schedule, **settings).in_flight(rank, microbatches)

    assert [held("1f1b", rank)[0] for rank in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert held("1f1b", 0, microbatches=3) == [3]
    assert held("gpipe", 7) == [32]
    assert held("zb-h1", 5) == [8]
    assert [held("zb-h2", rank)[0] for rank in (0, 7)] == [15, 1]
    assert held("zb-v", 3) == [8, 8]


@pytest.mark.parametrize(("ranks", "chunks"), [(8, 3), (4, 2), (16, 8)])
def test_interleaved_holds_what_korthikanti_2022_says(ranks, chunks):
    """Section 4.2.3: the first rank keeps L (1 + (p - 1) / (p m)) layers' activations."""
    layout = Layout(pipeline=ranks, schedule="interleaved", chunks=chunks)
    layers = 2 * ranks * chunks
    stages = layout.stages(layers)[0]
    held = layout.in_flight(0, microbatches=8 * ranks)
    kept = sum(len(stage.layers) * count for stage, count in zip(stages, held, strict=True))
    assert kept == pytest.approx(layers * (1 + (ranks - 1) / (ranks * chunks)))


def test_a_layout_that_can_be_has_no_faults():
    assert problems(data=8, shard=3) == []
    assert problems(64, 64, data=4, tensor=8, pipeline=2, rows=2) == []
    assert problems(64, 64, data=8, pipeline=8, schedule="interleaved", chunks=4) == []
    assert problems(8, length=131072, context=8) == []
    assert problems(8, model=load_preset("mixtral-8x7b"), data=8, expert=8) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": 4}, "takes 4 devices and there are 8; data 8 would use them all"),
        ({"tensor": 16}, "takes 16 devices and there are 8; tensor x pipeline x context is 16"),
        (
            {"devices": 48, "data": 3, "tensor": 16},
            "into 8 whole parts (512 rows each); 1, 2, 4 or 8 would do",
        ),
        ({"devices": 3, "tensor": 3}, "tensor 3: blocks.0.mixer.query.weight can be cut into 8 whole parts"),
        ({"devices": 64, "pipeline": 64}, "64 stages are more than 32 layers; at most 32 would do"),
        (
            {"pipeline": 8, "schedule": "interleaved", "chunks": 8},
            "64 stages are more than 32 layers; at most 4",
        ),
        ({"pipeline": 8, "chunks": 2}, "chunks 2: schedule 1f1b has none; take schedule interleaved"),
        ({"pipeline": 8, "schedule": "interleaved"}, "needs chunks 2 or more; with 1 it is 1f1b"),
        ({"pipeline": 8, "layers": (4,) * 7}, "8 stages with 32 layers in all are expected"),
        ({"context": 8, "length": 1001}, "does not divide rows of 1001 tokens; 1, 7, 11 or 13 would do"),
        ({"data": 8, "expert": 8}, "expert 8: the model has no experts; 1 would do"),
        (
            {"data": 8, "batch": 12},
            "a batch of 12 rows: no multiple of data 8 x rows 1; 8 or 16 rows would be",
        ),
        (
            {"data": 8, "rows": 2, "batch": 8},
            "no multiple of data 8 x rows 2; 16 rows would be, or --rows 1 with 8",
        ),
        ({"data": 8, "shard": 4}, "shard 4: can't be; 0 to 3"),
        ({"data": 0}, "data 0: can't be; at least 1"),
        (
            {"pipeline": 8, "schedule": "interleaved", "chunks": 2, "batch": 12},
            "12 microbatches are no multiple of pipeline 8; 8 rows a batch, or a multiple, would do",
        ),
    ],
)
def test_what_can_not_be_is_said_with_what_would_work(settings, words):
    found = problems(**settings)
    assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_experts_must_be_shared_out():
    found = problems(model=load_preset("mixtral-8x7b"), data=8, expert=3)
    assert found == ["expert 3: must divide 8 experts and data x context 8; 1, 2, 4 or 8 would do"]


def test_a_recurrent_model_is_cut_by_its_heads():
    model = load_preset("rwkv7-0.1b")
    assert faults(model, 65536, Layout(tensor=4), 4, 4096) == []
    (found,) = faults(model, 65536, Layout(tensor=8), 8, 4096)
    assert "into 12 whole parts (64 rows each); 1, 2, 3, 4, 6 or 12 would do" in found
