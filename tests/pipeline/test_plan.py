"""What stands in a run's folder goes with its recipe: what no longer does is set aside, never deleted."""

import json

import pytest

from cupola.display import Display
from cupola.errors import InputError
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.observing import Observer
from cupola.pipeline.opening import open_run
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard

SMALL = ["stages.pretrain.tokens=2000", "stages.midtrain.tokens=2000", "evaluate.every=100%"]


@pytest.fixture
def done(tiny_recipe, tmp_path):
    """A finished short run."""
    folder = tmp_path / "run"
    report = run(load(tiny_recipe, SMALL), folder, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["done", "done"]
    return folder


def visible(folder):
    return sorted(p.name for p in (folder / "stages").iterdir() if not p.name.startswith("."))


def kept(folder):
    return sorted(p.name[1:12] for p in (folder / "stages").iterdir() if p.name.startswith("."))


def test_a_renamed_stage_leaves_no_stranger(tiny_recipe, done):
    tiny_recipe.write_text(tiny_recipe.read_text().replace("midtrain:", "cooldown:"))
    changed = [setting.replace("midtrain", "cooldown") for setting in SMALL]
    run(load(tiny_recipe, changed), done, None, Display(), check_first=False)
    assert visible(done) == ["01-pretrain", "02-cooldown"]
    assert kept(done) == ["02-midtrain"]
    assert open_run(done, Display()).stage == "cooldown"


@pytest.mark.parametrize("change", ["model.width=48", "tokenizer.vocabulary=600"])
def test_a_later_stage_of_another_model_or_tokenizer_is_not_taken_for_this_one(tiny_recipe, done, change):
    old = next((done / "stages" / "02-midtrain" / "checkpoints").glob("step-*"))
    run(load(tiny_recipe, [*SMALL, change]), done, "pretrain", Display(), check_first=False)
    assert visible(done) == ["01-pretrain"]
    assert kept(done) == ["01-pretrain", "02-midtrain"]
    assert open_run(done, Display()).stage == "pretrain"
    [aside] = (done / "stages").glob(".02-midtrain*")
    with pytest.raises(InputError, match="set aside"):
        open_run(aside / "checkpoints" / old.name, Display())


def test_a_damaged_parent_is_trained_again_before_its_child(tiny_recipe, done):
    path = next((done / "stages" / "01-pretrain" / "checkpoints").glob("step-*/weights.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = json.loads((path.parent / "manifest.json").read_text())["weights_sha256"]
    changed = load(tiny_recipe, [*SMALL, "stages.midtrain.learning_rate=1e-3"])
    report = run(changed, done, None, Display(), check_first=False)
    assert report.error is None
    assert [stage.status for stage in report.stages] == ["done", "done"]
    after = json.loads((path.parent / "manifest.json").read_text())["weights_sha256"]
    assert after == before  # trained again from the seed, bit for bit
    assert RunFolder(done).stage(1, "pretrain").facts()["status"] == "done"


def test_nothing_held_out_is_null_in_every_record(tiny_recipe, tmp_path):
    none = ["corpora.manual.heldout=0", "corpora.reference.heldout=0"]
    heard = Heard()
    folder = tmp_path / "none"
    report = run(load(tiny_recipe, [*SMALL, *none]), folder, "pretrain", heard, check_first=False)
    assert report.stages[0].heldout_bits_per_byte is None
    for path in (folder / "run.json", folder / "stages" / "01-pretrain" / "stage.json"):
        assert "NaN" not in path.read_text()
    assert RunFolder(folder).facts()["xz_bits_per_byte"] == {"manual": None, "reference": None}
    assert (folder / "report.html").is_file()
    assert not [text for text in heard.warnings if "report" in text]


def test_a_row_that_shrinks_in_the_last_window_is_checked(tiny_recipe, tmp_path):
    lengths = ["stages.pretrain.sequence_length={0%: 64, 90%: 32}", "stages.pretrain.tokens=3000 tokens"]
    report = run(load(tiny_recipe, [*SMALL, *lengths]), tmp_path / "shrinks", "pretrain", Display())
    assert report.error is None


def test_eval_reads_what_the_run_held_out_even_when_the_files_have_changed(tiny_recipe, done, tmp_path):
    opened = open_run(done, Display())
    before = {name: list(texts) for name, texts in opened.heldout_texts(Display()).items()}
    other = tmp_path / "others"
    other.mkdir()
    for number in range(30):
        (other / f"{number}.txt").write_text(f"Text number {number} is new and has never been seen. " * 40)
    recipe = (done / "recipe.yaml").read_text()
    old = next(line for line in recipe.splitlines() if line.strip().startswith("files:"))
    (done / "recipe.yaml").write_text(recipe.replace(old, f"    files: {other}", 1))
    opened = open_run(done, Display())
    assert {name: list(texts) for name, texts in opened.heldout_texts(Display()).items()} == before

    facts = RunFolder(done).facts()
    changed = next(iter(facts["heldout"]))
    facts["heldout"][changed]["folder"] = "text/gone"
    RunFolder(done).record(heldout=facts["heldout"])
    heard = Heard()
    open_run(done, heard).heldout_texts(heard)
    assert any("gathering it again" in text for text in heard.said)
    assert any("have changed" in text for text in heard.warnings)


def test_interrupted_in_the_last_evaluation_is_evaluated_once_in_the_records(
    tiny_recipe, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    look = Observer.finish

    def dies(self, *arguments):
        look(self, *arguments)
        raise RuntimeError("killed after the record was written")

    with monkeypatch.context() as patch:
        patch.setattr(Observer, "finish", dies)
        with pytest.raises(RuntimeError):
            run(load(tiny_recipe, SMALL), folder, "pretrain", Display(), check_first=False)
    run(load(tiny_recipe, SMALL), folder, "pretrain", Display(), check_first=False)
    for name in ("evaluations.jsonl", "samples.jsonl"):
        lines = (folder / "stages" / "01-pretrain" / name).read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert len(steps) == len(set(steps)) == 1


def test_rows_that_shrink_at_the_end_can_be_trained(tiny_recipe, tmp_path):
    settings = [
        *SMALL,
        "compile=auto",
        "stages.pretrain.sequence_length={0%: 128, 95%: 64}",
        "stages.pretrain.batch_tokens=8192",
        "stages.pretrain.tokens=20032 tokens",
        "scale.microbatch_tokens=1024",
    ]
    report = run(load(tiny_recipe, settings), tmp_path / "run", "pretrain", Display())
    assert report.error is None
