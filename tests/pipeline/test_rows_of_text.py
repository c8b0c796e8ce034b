"""Stages of text whose rows are whole documents, and whose long documents are raised."""

import json
from pathlib import Path

import pytest

from cupola.display import Display
from cupola.errors import InputError
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.prepare import prepare
from cupola.pipeline.run import run
from cupola.pipeline.stage import stage_clock, stage_order
from cupola.recipe.loading import load
from tests.displays import Heard
from tests.pipeline.test_resume import Crash, Saboteur, final_weights

ROW = 64
STAGE = ["stages.midtrain=null", "stages.pretrain.sequence_length=64", "stages.pretrain.batch_tokens=512"]
BEST_FIT = [*STAGE, "stages.pretrain.packing=best_fit"]
LONG = [*STAGE, "stages.pretrain.long_documents={over: 1000, share: 0.75}"]
BOTH = [*LONG, "stages.pretrain.packing=best_fit", "stages.pretrain.tokens=6000"]


def test_rows_of_whole_documents_are_trained_on_and_resumed(tiny_recipe: Path, tmp_path: Path) -> None:
    """And the stage is judged by held-out text, as any stage of text."""
    recipe, heard = load(tiny_recipe, BOTH), Heard()
    assert run(recipe, tmp_path / "whole", None, heard).status == "done"
    saboteur = Saboteur([5], "crash")
    with pytest.raises(Crash):
        run(recipe, tmp_path / "broken", None, saboteur, check_first=False)
    assert run(recipe, tmp_path / "broken", None, Display(), check_first=False).status == "done"
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "whole")
    stage = RunFolder(tmp_path / "whole").stage(1, "pretrain")
    assert set(stage.facts()["heldout"]) == {"manual", "reference"}
    rows = [json.loads(line) for line in stage.metrics.read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert any("documents of manual.long into" in line for line in heard.said)


def test_how_rows_are_made_belongs_to_the_stage(tiny_recipe: Path) -> None:
    stores = {}
    for name, changes in (("stream", STAGE), ("best_fit", BEST_FIT)):
        recipe = load(tiny_recipe, changes)
        stores[name] = prepare(recipe, Display()).train_stores(recipe.stages["pretrain"])
        assert set(stores[name]) == {"manual", "reference"}
    assert stores["stream"]["manual"].row_length is None
    assert stores["best_fit"]["manual"].row_length == ROW
    assert stores["stream"]["manual"].fingerprint != stores["best_fit"]["manual"].fingerprint


def test_long_documents_have_their_share_of_each_source(tiny_recipe: Path) -> None:
    """The mixture of sources stays as it is, at every moment of the stage."""
    recipe = load(tiny_recipe, [*LONG, "stages.pretrain.tokens=200k tokens"])
    stage = recipe.stages["pretrain"]
    stores = prepare(recipe, Display()).train_stores(stage)
    names = ["manual", "manual.long", "reference", "reference.long"]
    assert sorted(stores) == names
    clock = stage_clock(stage, stores)
    order = stage_order(recipe, "pretrain", stage, stores, clock)
    rows = order.rows(0, clock.end)
    taken = {
        name: rows["length"][rows["source"] == order.names.index(name)].sum() / rows["length"].sum()
        for name in names
    }
    wanted = {"manual": 0.175, "manual.long": 0.525, "reference": 0.075, "reference.long": 0.225}
    assert taken == pytest.approx(wanted, abs=0.002)
    for name in names:
        starts = stores[name].document_starts
        lengths = [*(starts[1:] - starts[:-1]), stores[name].length - starts[-1]]
        assert all((length > 1000) == name.endswith(".long") for length in lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["stages.pretrain.packing=best_fit"],
            "documents are packed into rows of one length; give one",
        ),
        (["stages.pretrain.long_documents={share: 1}"], "long_documents.share"),
        (["stages.pretrain.packing=tight"], "stream, best_fit are possible, not 'tight'"),
    ],
)
def test_nonsense_is_refused(tiny_recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load(tiny_recipe, changes)
    assert message in str(error.value)


def test_rows_pass_on_to_no_other_stage(tiny_recipe: Path) -> None:
    """What a stage does not say is the default, and the stage of another length has rows of its own."""
    recipe = load(tiny_recipe, ["stages.pretrain.sequence_length=64", "stages.midtrain.packing=best_fit"])
    prepared = prepare(recipe, Display())
    lengths = {
        name: prepared.train_stores(stage)["reference"].row_length for name, stage in recipe.stages.items()
    }
    assert lengths == {"pretrain": None, "midtrain": 64}
