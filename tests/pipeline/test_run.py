"""How a run begins and is broken off: whose folder it takes, in which order it writes, what it says."""

import json
import shutil

import pytest

from cupola import storage
from cupola.cli import main
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import InputError, Interrupted
from cupola.pipeline import run as running
from cupola.pipeline.folder import RunFolder, StageFolder
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard

SMALL = ["stages.midtrain=null", "stages.pretrain.tokens=1000", "evaluate.every=100%"]


@pytest.fixture
def done(tiny_recipe, tmp_path):
    """A finished short run of one stage."""
    folder = tmp_path / "run"
    report = run(load(tiny_recipe, SMALL), folder, None, Display(), check_first=False)
    assert report.status == "done"
    return folder


def killed(*arguments, **more):
    raise RuntimeError("killed")


def stopped(*arguments, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize("change", ["model.width=48", "tokenizer.vocabulary=600"])
def test_killed_before_old_stages_are_set_aside_leaves_them_their_recipe(
    tiny_recipe, done, monkeypatch, change
):
    recipe = (done / "recipe.yaml").read_text()
    tokenizer = Tokenizer.load(done / "tokenizer").fingerprint
    facts = RunFolder(done).facts()
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "set_aside", killed)
        with pytest.raises(RuntimeError):
            run(load(tiny_recipe, [*SMALL, change]), done, None, Display(), check_first=False)
    assert (done / "recipe.yaml").read_text() == recipe
    assert Tokenizer.load(done / "tokenizer").fingerprint == tokenizer
    assert RunFolder(done).facts() == facts
    report = run(load(tiny_recipe, [*SMALL, change]), done, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["done"]
    assert (done / "recipe.yaml").read_text() != recipe


def test_killed_at_its_first_write_a_run_begins_again(tiny_recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for name in ("decide", "_keep_tokenizer", "_record_facts"):
        with monkeypatch.context() as patch:
            patch.setattr(running, name, killed)
            with pytest.raises(RuntimeError):
                run(load(tiny_recipe, SMALL), folder, None, Display(), check_first=False)
    heard = Heard()
    assert run(load(tiny_recipe, SMALL), folder, None, heard, check_first=False).status == "done"
    assert heard.warnings == []


@pytest.mark.parametrize("until", ["prepare", "decide", "preflight", "StageRun"])
def test_interrupted_before_the_first_stage_prints_its_status(
    tiny_recipe, tmp_path, monkeypatch, capsys, until
):
    monkeypatch.setattr(running, until, stopped)
    overrides = [word for setting in SMALL for word in ("--set", setting)]
    assert main(["run", str(tiny_recipe), *overrides, "--out", str(tmp_path / "run"), "--json"]) == 130
    out, said = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert report == {"run": str(tmp_path / "run"), "status": "interrupted", "stages": []}
    assert said.splitlines()[-1].startswith("interrupted: ")


def test_interrupted_between_stages_keeps_what_was_done_in_the_report(tiny_recipe, done, monkeypatch):
    recipe = load(tiny_recipe, [*SMALL[1:], "stages.midtrain.tokens=1000"])
    monkeypatch.setattr(running, "StageRun", stopped)
    report = run(recipe, done, None, Display(), check_first=False)
    assert isinstance(report.error, Interrupted)
    assert [(stage["name"], stage["status"]) for stage in report.as_json()["stages"]] == [
        ("pretrain", "unchanged")
    ]


def test_a_folder_with_files_of_something_else_is_refused_and_left_alone(tiny_recipe, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("my own notes")
    with pytest.raises(InputError, match=r"mine: holds files but no run; choose an empty or new folder$"):
        run(load(tiny_recipe, SMALL), folder, None, Display(), check_first=False)
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_the_run_of_another_recipe_is_refused_and_left_alone(tiny_recipe, done):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    with pytest.raises(InputError, match=r"is the run of recipe tiny, not of other; .*--set name=tiny"):
        run(load(tiny_recipe, [*SMALL, "name=other"]), done, None, Display(), check_first=False)
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    report = run(load(tiny_recipe, [*SMALL, "name=other", "name=tiny"]), done, None, Display())
    assert [stage.status for stage in report.stages] == ["unchanged"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no manifest"])
def test_a_damaged_tokenizer_is_written_anew(tiny_recipe, done, damage):
    file = done / "tokenizer" / "tokenizer.json"
    if damage == "cut":
        file.write_text(file.read_text()[:200])
    elif damage == "changed":
        file.write_text(file.read_text().replace("the", "teh", 1))
    elif damage == "gone":  # as a kill in the middle of its deletion leaves it
        file.unlink()
    else:
        (done / "tokenizer" / storage.MANIFEST).unlink()
    heard = Heard()
    report = run(load(tiny_recipe, SMALL), done, None, heard, check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged"]
    assert [text for text in heard.warnings if "the run's tokenizer is written anew" in text]
    storage.verify(done / "tokenizer")


def test_a_kill_while_the_tokenizer_is_replaced_leaves_one(tiny_recipe, done, monkeypatch):
    old = Tokenizer.load(done / "tokenizer").fingerprint
    changed = load(tiny_recipe, [*SMALL, "tokenizer.vocabulary=600"])
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", killed)
        with pytest.raises(RuntimeError):
            run(changed, done, None, Display(), check_first=False)
    assert Tokenizer.load(done / "tokenizer").fingerprint == old
    shutil.rmtree(done / "tokenizer")
    assert run(changed, done, None, Display(), check_first=False).status == "done"


def test_what_is_to_be_said_of_a_stage_is_said_once_when_it_begins(tiny_recipe, tmp_path):
    heard = Heard()
    settings = [*SMALL, "stages.pretrain.batch_tokens=200", "stages.pretrain.sequence_length=32"]
    run(load(tiny_recipe, settings), tmp_path / "run", None, heard, check_first=False)
    note = "batch_tokens 200 is no multiple of the row of 32: batches alternate between 6 and 7 rows"
    assert heard.said.count(f"stage 'pretrain': {note}") == 1
