"""Memory of whole layouts: which rank, which peak, what each setting does to it."""

from dataclasses import replace

import pytest

from cupola.models import table
from cupola.plan.execution import CHUNK, GIB, LOGITS, Execution
from cupola.plan.layout import Layout
from cupola.plan.memory import Run, by_rank, needed, rank_memory
from cupola.recipe.loading import load_preset

LLAMA = load_preset("llama3-8b")


def run(layout=None, length=8192, model=LLAMA, **settings) -> Run:
    execution = settings.pop("execution", Execution())
    return Run(model, model.rows(8192), layout or Layout(), length, execution=execution, **settings)


def test_components_add_up_to_the_total():
    for layout in (Layout(), Layout(data=8, shard=3), Layout(tensor=4, pipeline=4, rows=2)):
        for memory in by_rank(run(layout)):
            assert sum(memory.components().values()) == pytest.approx(memory.total)
            assert memory.total > memory.reserved > memory.allocated > memory.states > 0


def test_the_ranks_of_a_pipeline_hold_every_parameter_once():
    ranks = by_rank(run(Layout(pipeline=4), execution=Execution(precision="fp32")))
    assert sum(memory.parameters for memory in ranks) == 4 * table.count(LLAMA, 128256)


def test_a_tied_head_lies_on_the_first_rank_and_on_the_last():
    model = load_preset("qwen3-0.6b")
    assert model.tied
    numbers = table.count(model, model.vocabulary)
    twice = by_rank(run(Layout(pipeline=4), model=model, execution=Execution(precision="fp32")))
    assert sum(memory.parameters for memory in twice) == 4 * (numbers + model.vocabulary * model.width)
    once = by_rank(
        run(Layout(pipeline=4, schedule="zb-v"), model=model, execution=Execution(precision="fp32"))
    )
    assert sum(memory.parameters for memory in once) == 4 * numbers


def test_activations_are_those_in_flight():
    """Of 32 layers on 4 ranks, with 4, 3, 2 and 1 microbatches; or as many as there are."""
    layer = run().activations(0) / 32
    pipeline = run(Layout(pipeline=4), batch=64)
    assert [pipeline.activations(rank) / layer for rank in range(4)] == pytest.approx([32, 24, 16, 8])
    assert run(Layout(pipeline=4), batch=2).activations(0) == pytest.approx(16 * layer)
    assert run(Layout(pipeline=4, schedule="gpipe"), batch=64).activations(3) == pytest.approx(512 * layer)


def test_a_rank_keeps_what_it_sent_on_and_has_room_for_its_gradient():
    pipeline = run(Layout(pipeline=4), batch=64)
    each = 2 * 2 * 8192 * 4096
    assert [pipeline.boundaries(rank) / each for rank in range(4)] == [4, 3, 2, 0]
    assert run().boundaries(0) == 0
    assert run(Layout(pipeline=2, schedule="zb-v"), batch=64).boundaries(0) == 2 * each


def test_context_and_tensor_parallelism_cut_activations():
    whole = run().activations(0)
    assert run(Layout(context=8)).activations(0) == pytest.approx(whole / 8)
    assert run(Layout(tensor=8)).activations(0) == pytest.approx(whole / 8)
    assert run(Layout(tensor=8, sequence_parallel=False)).activations(0) > whole / 8
    assert run(Layout(rows=4)).activations(0) == pytest.approx(4 * whole)


@pytest.mark.parametrize("loss", LOGITS)
def test_logits_take_so_many_bytes_each(loss):
    stream = 2 * 2 * 8192 * 4096  # the last norm's input and output
    assert run(execution=Execution(loss=loss)).logits() == LOGITS[loss] * 8192 * 128256 + stream
    cut = run(Layout(tensor=8), execution=Execution(loss=loss)).logits()
    assert cut == LOGITS[loss] * 8192 * 128256 / 8 + stream / 8


def test_a_chunked_loss_holds_no_row_of_logits_more_for_longer_rows():
    def beyond(length):
        return run(length=length).logits() - 3 * 2 * length * 4096

    assert beyond(8192) == beyond(131072) == 3 * CHUNK + 4 * 128256 * 4096


def test_of_logits_and_backward_pass_the_larger_counts():
    eager = needed(run(execution=Execution(loss="eager")))
    assert eager.logits > eager.backward
    assert {"logits", "backward pass"} & set(eager.components()) == {"logits"}
    chunked = needed(run(Layout(rows=8, checkpointing="full")))
    assert chunked.backward > chunked.logits
    assert chunked.allocated == chunked.states + chunked.activations + chunked.gathered + chunked.backward


def test_sharded_parameters_are_gathered_layer_by_layer():
    memory = needed(run(Layout(data=8, shard=3)))
    layer = (8_030_261_248 - 2 * 128256 * 4096 - 4096) / 32
    outside = 2 * 128256 * 4096 + 4096
    assert memory.gathered == pytest.approx(2 * (outside + 2 * layer) + 4 * outside)
    assert needed(run(Layout(data=8, shard=1))).gathered == 0


def test_with_a_pipeline_they_are_gathered_once_for_the_step():
    layout = Layout(data=8, shard=3, pipeline=4)
    first = rank_memory(run(layout, batch=64), 0)
    numbers = (8_030_261_248 - 2 * 128256 * 4096 - 4096) / 4 + 128256 * 4096
    assert first.gathered == pytest.approx(6 * numbers)
    by_layer = replace(Execution(), gather="layer")
    assert rank_memory(run(layout, batch=64, execution=by_layer), 0).gathered < first.gathered


def test_more_sharding_never_takes_more_states():
    found = [needed(run(Layout(data=8, shard=shard))).states for shard in range(4)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


def test_fits_leaves_a_margin():
    memory = needed(run(Layout(data=8, shard=3)))
    assert memory.fits(memory.total / 0.95 + 1)
    assert not memory.fits(memory.total / 0.95 - 1)
    assert memory.fits(memory.total, margin=0)


def test_a_row_of_131072_tokens_fits_on_eight():
    layout = Layout(data=1, context=8, shard=3, checkpointing="full")
    assert needed(run(layout, length=131072)).fits(79.6 * GIB)
    assert not needed(run(replace(layout, checkpointing="none"), length=131072)).fits(79.6 * GIB)
