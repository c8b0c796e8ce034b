"""What a disk or a hand damaged in a run is found, said, and mended without losing what is whole."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from cupola import storage
from cupola.checkpoint.names import checkpoints
from cupola.cli import main
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.pipeline.folder import DamagedRecord, RunFolder, StageFolder, write_record
from cupola.pipeline.listing import list_checkpoints, list_runs
from cupola.pipeline.opening import open_run
from cupola.pipeline.run import RunReport, run
from cupola.recipe.loading import load
from tests.displays import Heard

SMALL = ["stages.pretrain.tokens=2000", "stages.midtrain.tokens=2000", "evaluate.every=50%"]


def go_on(recipe: Path, folder: Path, display: Display | None = None, settings=SMALL) -> RunReport:
    return run(load(recipe, settings), folder, None, display or Display(), check_first=False)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def done(tiny_recipe: Path, tmp_path: Path, trained_once: Path) -> Path:
    """A finished short run, each test's own copy, in the runs' folder."""
    if not trained_once.exists():
        assert go_on(tiny_recipe, trained_once).error is None
    return Path(shutil.copytree(trained_once, tmp_path / "runs" / "tiny", symlinks=True))


def stage(folder: Path, number: int) -> StageFolder:
    return RunFolder(folder).stages()[number - 1]


def flip(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def newest(folder: Path, number: int) -> Path:
    return checkpoints(stage(folder, number).checkpoints)[-1]


def weights_of(folder: Path) -> list[str]:
    rows = list_checkpoints(folder, True, Display())
    assert all(row["verified"] for row in rows)
    return [row["weights_sha256"] for row in rows]


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def tear(path: Path) -> Path:
    path.write_text(path.read_text()[:40])
    return path


def test_listing_says_what_it_has_not_read(done):
    flip(newest(done, 2) / "weights.safetensors")
    assert [row["verified"] for row in list_checkpoints(done, False, Display())] == [None, None]
    assert [row["verified"] for row in list_checkpoints(done, True, Display())] == [True, False]
    (newest(done, 1) / "weights.safetensors").unlink()
    assert [row["verified"] for row in list_checkpoints(done, False, Display())] == [False, None]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_one_flipped_bit_in_the_last_stage_is_found_and_trained_again(tiny_recipe, done, file):
    before = weights_of(done)
    path = flip(newest(done, 2) / file)
    heard = Heard()
    report = go_on(tiny_recipe, done, heard)
    assert [stage.status for stage in report.stages] == ["unchanged", "done"]
    assert any(str(path) in text and "trained again" in text for text in heard.warnings)
    assert weights_of(done) == before
    assert [path.name for path in stage(done, 2).checkpoints.glob("*.damaged")] == []


def test_both_stages_damaged_are_both_trained_again(tiny_recipe, done):
    before = weights_of(done)
    for number in (1, 2):
        flip(newest(done, number) / "weights.safetensors")
    report = go_on(tiny_recipe, done)
    assert [stage.status for stage in report.stages] == ["done", "done"]
    assert weights_of(done) == before


def test_a_damaged_end_goes_on_from_the_one_before_and_reports_its_own_steps(tiny_recipe, done, monkeypatch):
    """What came after the older checkpoint is cut, and a retry that fails does not report the old end."""
    folder = done.with_name("other")
    with monkeypatch.context() as patch:
        patch.setattr("cupola.checkpoint.folder.retain", lambda *_, **__: [])
        assert go_on(tiny_recipe, folder).error is None
    before = [stage(folder, number).facts() for number in (1, 2)]
    older, last = checkpoints(stage(folder, 2).checkpoints)[-2:]
    flip(last / "weights.safetensors")
    with monkeypatch.context() as patch:

        def fails(setup, display):
            raise CupolaError("stopped here")

        patch.setattr("cupola.pipeline.stage.train_stage", fails)
        report = go_on(tiny_recipe, folder)
    assert report.error is not None
    at = json.loads((older / "manifest.json").read_text())
    assert (report.stages[1].steps, report.stages[1].tokens) == (at["step"], at["tokens"])
    assert (report.stages[1].final_loss, report.stages[1].heldout_bits_per_byte) == (None, None)
    assert "steps" not in stage(folder, 2).facts()
    assert max(steps_of(stage(folder, 2).metrics)) == at["step"]
    assert max(steps_of(stage(folder, 2).evaluations), default=0) <= at["step"]
    assert (last.with_name(last.name + ".damaged")).is_dir()

    report = go_on(tiny_recipe, folder)
    assert report.stages[1].steps == before[1]["steps"]
    assert steps_of(stage(folder, 2).metrics) == list(range(1, before[1]["steps"] + 1))
    assert checkpoints(stage(folder, 2).checkpoints) == [last]
    after = stage(folder, 2).facts()
    assert {**after, "seconds": 0} == {**before[1], "seconds": 0}


def test_reading_needs_the_weights_alone(done):
    flip(newest(done, 2) / "optimizer.safetensors")
    heard = Heard()
    assert open_run(done, heard).stage == "midtrain"
    assert heard.warnings == []


def test_reading_falls_back_within_the_stage_first(tiny_recipe, done):
    older = newest(done, 2)
    path = shutil.copytree(older, older.with_name("step-00009999")) / "weights.safetensors"
    flip(path)
    heard = Heard()
    opened = open_run(done, heard)
    assert (opened.stage, opened.checkpoint) == ("midtrain", older)
    assert any(str(path.parent) in text and older.name in text for text in heard.warnings)


def test_reading_an_earlier_stage_instead_names_both_and_the_file(done):
    path = flip(newest(done, 2) / "weights.safetensors")
    heard = Heard()
    assert open_run(done, heard).stage == "pretrain"
    [warning] = heard.warnings
    assert all(words in warning for words in (str(path), "stage midtrain", "stage pretrain"))
    with pytest.raises(CupolaError, match="midtrain") as refused:
        open_run(done, Display(), "midtrain")
    assert str(path) in str(refused.value)
    flip(newest(done, 1) / "weights.safetensors")
    with pytest.raises(CupolaError, match=r"weights\.safetensors"):
        open_run(done, Display())


@pytest.mark.parametrize("torn", ["run.json", "stages/02-midtrain/stage.json"])
def test_a_torn_record_does_not_hide_the_other_runs(done, torn):
    shutil.copytree(done, done.with_name("another"), symlinks=True)
    path = tear(done / torn)
    whole, damaged = list_runs(done.parent)
    assert "error" not in whole
    assert [stage["status"] for stage in whole["stages"]] == ["done", "done"]
    assert str(path) in damaged["error"]
    assert damaged["name"] == "tiny"
    assert damaged["stages"][0]["status"] == "done"
    assert len(list_checkpoints(done, True, Display())) == 2


@pytest.mark.parametrize("damage", [tear, Path.unlink])
def test_damaged_records_are_written_anew_and_nothing_is_trained_again(tiny_recipe, done, damage):
    folder = RunFolder(done)
    weights, facts = weights_of(done), folder.facts()
    records = [stage(done, number).facts() for number in (1, 2)]
    paths = [done / "run.json", *(stage(done, number).record_path for number in (1, 2))]
    for path in paths:
        damage(path)
    heard = Heard()
    report = go_on(tiny_recipe, done, heard)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged"]
    assert all(any(str(path) in text for text in heard.warnings) for path in paths)
    assert [stage(done, number).facts() for number in (1, 2)] == records
    kept = folder.facts()
    for name in set(facts) - {"machine", "decisions"}:
        assert kept[name] == facts[name]
    assert kept["decisions"]["precision"] == facts["decisions"]["precision"]
    assert weights_of(done) == weights
    assert all(path.with_name(path.name + ".damaged").exists() == (damage is tear) for path in paths)


def test_what_auto_decided_comes_back_from_the_ledger(tiny_recipe, done):
    decided = {**RunFolder(done).facts()["decisions"], "microbatch_tokens": 77}
    RunFolder(done).record_decisions(decided)
    tear(done / "run.json")
    settings = [*SMALL, "scale.microbatch_tokens=auto"]
    go_on(tiny_recipe, done, settings=settings)
    assert RunFolder(done).facts()["decisions"]["microbatch_tokens"] == 77


def test_a_stage_that_neither_record_nor_ledger_knows_is_refused_with_a_way_on(tiny_recipe, done):
    before = weights_of(done)
    tear(stage(done, 2).record_path)
    (done / "ledger.jsonl").unlink()
    with pytest.raises(CupolaError, match="rename") as refused:
        go_on(tiny_recipe, done)
    assert str(done / "stages" / "02-midtrain" / "stage.json") in str(refused.value)
    assert len(checkpoints(done / "stages" / "02-midtrain" / "checkpoints")) == 1
    (done / "stages" / "02-midtrain").rename(done / "stages" / ".02-midtrain")
    assert go_on(tiny_recipe, done).error is None
    assert weights_of(done) == before


def test_readers_say_how_a_torn_record_is_mended(done):
    tear(done / "run.json")
    with pytest.raises(CupolaError, match="cupola run") as refused:
        open_run(done, Display())
    assert str(done / "run.json") in str(refused.value)
    command = str(refused.value).split("`")[1].split()
    assert command[:2] == ["cupola", "run"]
    report = run(load(command[2], []), Path(command[4]), None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged"]
    assert open_run(done, Display()).stage == "midtrain"


def test_a_damaged_tokenizer_of_the_run_is_written_again(tiny_recipe, done):
    tear(done / "tokenizer" / "tokenizer.json")
    assert go_on(tiny_recipe, done).error is None
    assert open_run(done, Display()).stage == "midtrain"


def changed(path: Path, **values) -> Path:
    """Change a JSON object as a stray bit or a hand would: its seal no longer holds."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return path


def unsealed(path: Path, without: str = "", **values) -> Path:
    """A record as one would be that is older than seals."""
    facts = {**storage.unsealed(json.loads(path.read_text())), **values}
    path.write_text(json.dumps({key: value for key, value in facts.items() if key != without}))
    return path


def pasted(message: str, tiny_recipe: Path) -> None:
    """Do what a message says between its backquotes, as a shell would."""
    for command in message.split("`")[1].split("&&"):
        words = shlex.split(command)
        if words[0] == "mv":
            Path(words[1]).rename(words[2])
            continue
        assert (words[0], words[1], words[3]) == ("cupola", "run", "--out")
        recipe = load(tiny_recipe, SMALL) if words[2] == "RECIPE" else load(words[2])
        assert run(recipe, Path(words[4]), None, Display(), check_first=False).error is None


def test_a_changed_manifest_is_damage_and_is_trained_again(tiny_recipe, done):
    before = weights_of(done)
    manifest = newest(done, 2) / "manifest.json"
    changed(manifest, tokens=json.loads(manifest.read_text())["tokens"] + 64)
    assert [row["verified"] for row in list_checkpoints(done, True, Display())] == [True, False]
    heard = Heard()
    report = go_on(tiny_recipe, done, heard)
    assert [stage.status for stage in report.stages] == ["unchanged", "done"]
    assert any(str(manifest) in text for text in heard.warnings)
    assert weights_of(done) == before


def test_no_stage_is_trained_twice_over_by_a_manifest_that_says_less(tiny_recipe, done):
    before, steps = weights_of(done), stage(done, 2).facts()["steps"]
    unsealed(newest(done, 2) / "manifest.json", tokens=64)
    record = stage(done, 2).record_path
    facts = stage(done, 2).facts()
    write_record(record, {key: facts[key] for key in ("name", "key", "compiled")} | {"status": "running"})
    assert go_on(tiny_recipe, done).error is None
    assert steps_of(stage(done, 2).metrics) == list(range(1, steps + 1))
    assert weights_of(done) == before


DAMAGES = [
    ("stages/02-midtrain/stage.json", {"without": "checkpoint"}),
    ("stages/02-midtrain/stage.json", {"checkpoint": None}),
    ("stages/02-midtrain/stage.json", {"heldout_bits_per_byte": "x"}),
    ("stages/02-midtrain/stage.json", {"name": "mjdtrain"}),
    ("stages/02-midtrain/stage.json", {"status": "dond"}),
    ("run.json", {"without": "decisions"}),
    ("run.json", {"decisions": None}),
    ("run.json", {"decisions": {"precision": "fp32"}}),
    ("run.json", {"check": [3]}),
    ("run.json", {"without": "name"}),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_json_that_is_no_record_is_said_and_mended(tiny_recipe, done, name, damage):
    facts = [RunFolder(done).facts(), *(stage(done, number).facts() for number in (1, 2))]
    path = unsealed(done / name, **damage)
    [row] = list_runs(done.parent)
    assert str(path) in row["error"]
    with pytest.raises(CupolaError) as refused:
        open_run(done, Display())
    assert str(path) in str(refused.value)
    pasted(str(refused.value), tiny_recipe)
    assert path.with_name(f"{path.name}.damaged").exists()
    after = [RunFolder(done).facts(), *(stage(done, number).facts() for number in (1, 2))]
    for record in (facts[0], after[0]):
        record["decisions"].pop("peak_flops")  # measured again
    assert [after[0][key] for key in facts[0] if key != "machine"] == [
        facts[0][key] for key in facts[0] if key != "machine"
    ]
    assert after[1:] == facts[1:]


@pytest.mark.parametrize("name", ["run.json", "stages/02-midtrain/stage.json"])
def test_a_flipped_bit_in_a_value_of_a_record_is_found(tiny_recipe, done, name):
    """Taken for true, another key would have the stage set aside and trained anew."""
    path = done / name
    value = {"run.json": {"vocabulary": 513}}.get(name, {"key": "0" * 64})
    changed(path, **value)
    with pytest.raises(DamagedRecord):
        (RunFolder(done) if name == "run.json" else stage(done, 2)).facts()
    report = go_on(tiny_recipe, done)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged"]


def test_records_older_than_seals_are_read(tiny_recipe, done):
    for path in (done / "run.json", stage(done, 1).record_path, stage(done, 2).record_path):
        unsealed(path)
    for number in (1, 2):
        unsealed(newest(done, number) / "manifest.json")
    heard = Heard()
    report = go_on(tiny_recipe, done, heard)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged"]
    assert heard.warnings == []


def test_a_damaged_earlier_stage_comes_back_by_what_the_message_says(tiny_recipe, done, capsys):
    """`cupola run` alone leaves it: the later stage is whole."""
    before = weights_of(done)
    path = flip(newest(done, 1) / "weights.safetensors")
    assert go_on(tiny_recipe, done).stages[0].status == "unchanged"
    with pytest.raises(CupolaError, match="pretrain") as refused:
        open_run(done, Display(), "pretrain")
    assert main(["checkpoint", "verify", str(done)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    for message in (str(refused.value), said):
        assert f"mv {path.parent} {path.parent}.damaged" in message
    pasted(said, tiny_recipe)
    assert main(["checkpoint", "verify", str(done)]) == 0
    assert weights_of(done) == before
    assert open_run(done, Display(), "pretrain").stage == "pretrain"


def test_a_damaged_checkpoint_that_was_set_aside_is_not_promised_to_come_back(done):
    path = flip(newest(done, 2) / "weights.safetensors")
    with pytest.raises(CupolaError, match="trains again"):
        open_run(path.parent, Display())
    whole = stage(done, 2)
    aside = whole.set_aside() / path.relative_to(whole.path)
    with pytest.raises(CupolaError) as refused:
        open_run(aside.parent, Display())
    assert str(aside) in str(refused.value)
    assert "cupola run" not in str(refused.value)


def other_width(path: Path) -> None:
    path.write_text(path.read_text().replace("width: 32", "width: 36"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer", shutil.rmtree),
        ("tokenizer/tokenizer.json", flip),
        ("recipe.yaml", Path.unlink),
        ("recipe.yaml", tear),
        ("recipe.yaml", other_width),
        ("run.json", Path.unlink),
        ("stages/02-midtrain/stage.json", Path.unlink),
    ],
)
def test_every_damage_is_told_with_the_command_that_mends_it(tiny_recipe, done, name, damage):
    spaced = done.rename(done.with_name("with 'a' space"))
    damage(spaced / name)
    with pytest.raises(CupolaError) as refused:
        open_run(spaced, Display())
    pasted(str(refused.value), tiny_recipe)
    assert open_run(spaced, Display()).stage == "midtrain"


def test_a_run_whose_record_is_gone_is_listed(done):
    (done / "run.json").unlink()
    [row] = list_runs(done.parent)
    assert str(done / "run.json") in row["error"]


def test_a_stage_folder_that_is_gone_is_said_and_trained_again(tiny_recipe, done):
    before = weights_of(done)
    path = stage(done, 1).path
    shutil.rmtree(path)
    heard = Heard()
    report = go_on(tiny_recipe, done, heard)
    assert [stage.status for stage in report.stages] == ["done", "unchanged"]
    assert [str(path) in text and "is gone" in text for text in heard.warnings] == [True]
    assert weights_of(done) == before


def test_next_commands_can_be_pasted(tiny_recipe, done):
    heard = Heard()
    go_on(tiny_recipe, done.rename(done.with_name("with space")), heard)
    [line] = [text for text in heard.said if "cupola eval" in text]
    assert shlex.split(line)[2] == str(done.with_name("with space"))
