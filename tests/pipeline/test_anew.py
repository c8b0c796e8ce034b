"""`cupola run --from STAGE`: what is trained again, what is kept, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cupola.cli import main
from cupola.display import Display
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity
from tests.displays import Heard
from tests.pipeline.test_resume import final_weights

STAGE = {
    "data": {"manual": 1},
    "tokens": 512,
    "sequence_length": 32,
    "batch_tokens": 256,
    "learning_rate": 1e-3,
}
STAGES = {
    "pretrain": STAGE,
    "sft": STAGE,
    "rl": STAGE,
    "more": {**STAGE, "parent": "sft"},
    "apart": {**STAGE, "parent": "pretrain"},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("anew") / "run"


@pytest.fixture
def recipe_path(tiny_recipe: Path, tmp_path: Path) -> Path:
    values = yaml.safe_load(tiny_recipe.read_text())
    path = tmp_path / "anew.yaml"
    path.write_text(yaml.safe_dump({**values, "stages": STAGES, "health": "off"}, sort_keys=False))
    return path


@pytest.fixture
def done(recipe_path: Path, tmp_path: Path, kept: Path) -> Path:
    if not kept.exists():
        assert run(load(recipe_path), kept, None, Display(), check_first=False).error is None
    return shutil.copytree(kept, tmp_path / "run", symlinks=True)


def aside(folder: Path) -> list[str]:
    """Stages that were set aside, without their times."""
    return sorted(path.name.split("-")[1] for path in (folder / "stages").iterdir() if path.name[0] == ".")


@pytest.mark.parametrize(
    ("options", "before", "trained", "set_aside"),
    [
        (["--from", "rl"], ["pretrain", "sft"], ["rl", "more", "apart"], ["apart", "more", "rl"]),
        (["--from", "sft", "--until", "sft"], ["pretrain"], ["sft"], ["more", "rl", "sft"]),
        (["--from", "rl", "--until", "more"], ["pretrain", "sft"], ["rl", "more"], ["more", "rl"]),
    ],
)
def test_the_stages_are_trained_again_and_the_old_ones_kept(
    options, before, trained, set_aside, recipe_path, done, capsys
):
    weights = final_weights(done)
    assert main(["run", str(recipe_path), "--out", str(done), *options, "--no-check", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]
    expected = [(name, "unchanged") for name in before] + [(name, "done") for name in trained]
    assert [(stage["name"], stage["status"]) for stage in stages] == expected
    assert aside(done) == set_aside
    events = [e for e in RunFolder(done).ledger.events() if e["event"] == "stage_set_aside"]
    assert "(--from)" in events[0]["why"]
    report = run(load(recipe_path), done, None, Display(), check_first=False)
    left = {stage.name for stage in report.stages if stage.status == "done"}
    assert left == set(set_aside) - set(trained)
    assert final_weights(done) == weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "rll"], "--from rll: no such stage; did you mean rl?"),
        (
            ["--until", "nothing"],
            "--until nothing: no such stage; the recipe has pretrain, sft, rl, more, apart",
        ),
        (["--from", "rl", "--until", "sft"], "--from rl --until sft: rl comes after sft"),
        (
            ["--from", "rl", "--set", "stages.sft.learning_rate=2e-3"],
            "--from rl: stage rl begins with what stage sft left, and that is not finished as the recipe"
            " has it; say --from sft, or run without --from",
        ),
        (["--from", "apart", "--set", "seed=9"], "stage apart begins with what stage pretrain left"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_set_aside(options, message, recipe_path, done, capsys):
    assert main(["run", str(recipe_path), "--out", str(done), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert aside(done) == []


def test_without_a_run_it_leaves_no_folder(recipe_path, tmp_path, capsys):
    assert main(["run", str(recipe_path), "--out", str(tmp_path / "new"), "--from", "sft"]) == 2
    assert "stage sft begins with what stage pretrain left" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_damaged_parent_is_said_before_anything_is_set_aside(recipe_path, done, capsys):
    file = next((done / "stages/02-sft/checkpoints").glob("step-*/weights.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["run", str(recipe_path), "--out", str(done), "--from", "rl"]) == 2
    assert "stage rl begins with what stage sft left" in capsys.readouterr().err.splitlines()[-1]
    assert aside(done) == []


def test_what_is_paused_goes_on_without_from(recipe_path, done):
    heard = Heard()
    report = run(
        load(recipe_path), done, "rl", heard, check_first=False, stop_at=Quantity.parse("50%"), anew_from="rl"
    )
    assert report.status == "paused"
    assert "go on without --from rl, which would begin with it once more" in heard.said
    report = run(load(recipe_path), done, "rl", Display(), check_first=False)
    assert [(stage.name, stage.status) for stage in report.stages][-1] == ("rl", "done")
    assert len(aside(done)) == 1  # the one that --from set aside, and no other
