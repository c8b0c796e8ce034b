"""`cupola run --stop-at`: a hard stop with the schedules unchanged; going on is bit-exact."""

import json

import pytest

from cupola.cli import main
from cupola.display import Display
from cupola.json_lines import read_whole
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.listing import list_checkpoints, list_runs
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity

SMALL = ["evaluate.every=100%", "stages.pretrain.tokens=6000", "stages.midtrain.tokens=1000"]
TIMES = ("seconds", "tokens_per_second", "mfu", "memory_bytes")


def weights(folder):
    return {row["stage"]: row["weights_sha256"] for row in list_checkpoints(folder, True, Display())}


def metrics(folder):
    rows = read_whole(RunFolder(folder).stage(1, "pretrain").metrics)
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.fixture
def start(tiny_recipe, tmp_path):
    def start(name, stop_at=None, until="pretrain"):
        return run(load(tiny_recipe, SMALL), tmp_path / name, until, Display(), False, stop_at)

    return start


def test_stopped_and_gone_on_ends_as_if_never_stopped(start, tmp_path):
    assert start("straight").status == "done"
    straight = metrics(tmp_path / "straight")
    # In the middle of a batch phase, at a step, and after the row has grown.
    for position in (Quantity(1700, "tokens"), Quantity(9, "steps"), Quantity(60, "%")):
        report = start("stopped", position)
        [stage] = report.stages
        assert (report.status, report.error, stage.status) == ("paused", None, "paused")
        asked = {"tokens": 1700, "steps": straight[8]["tokens"], "%": 3600}[position.unit]
        reached = next(row for row in straight if row["tokens"] >= asked)  # the step that reaches it
        assert (stage.steps, stage.tokens) == (reached["step"], reached["tokens"])
        assert metrics(tmp_path / "stopped") == straight[: reached["step"]]
    assert start("stopped").status == "done"
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    assert metrics(tmp_path / "stopped") == straight


def test_a_pause_is_evaluated_once_and_asked_for_again_does_nothing(start, tmp_path):
    start("run", Quantity(40, "%"))
    stage = RunFolder(tmp_path / "run").stage(1, "pretrain")
    [evaluation] = read_whole(stage.evaluations)
    assert evaluation["tokens"] == metrics(tmp_path / "run")[-1]["tokens"] >= 2400
    assert not evaluation["whole"]
    rows = metrics(tmp_path / "run")
    report = start("run", Quantity(10, "%"))  # a position that is behind
    assert (report.status, report.stages[0].tokens) == ("paused", evaluation["tokens"])
    assert metrics(tmp_path / "run") == rows
    assert read_whole(stage.evaluations) == [evaluation]
    assert stage.facts()["status"] == "running"


def test_only_the_last_stage_pauses_and_the_end_is_no_pause(start, tmp_path):
    report = start("run", Quantity(50, "%"), until=None)
    assert [(stage.name, stage.status) for stage in report.stages] == [
        ("pretrain", "done"),
        ("midtrain", "paused"),
    ]
    assert start("run", Quantity(100, "%"), until=None).status == "done"
    assert start("run", Quantity(50, "%"), until=None).stages[-1].status == "unchanged"


def test_the_command_exits_with_0_and_says_how_to_go_on(tiny_recipe, tmp_path, capsys):
    command = ["run", str(tiny_recipe), "--out", str(tmp_path / "run"), "--no-check", "--until", "pretrain"]
    assert main([*command, "--stop-at", "2 steps", "--json"]) == 0
    out, said = capsys.readouterr()
    report = json.loads(out.splitlines()[-1])
    assert (report["status"], report["stages"][0]["steps"]) == ("paused", 2)
    assert "paused: stage pretrain is saved after step 2" in said


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        ("120%", "--stop-at 120%: lies beyond stage midtrain, which has 4,000 tokens in"),
        ("9999 steps", "lies beyond stage midtrain"),
        ("soon", "--stop-at soon: 'soon' is not an amount"),
        ("2 epochs", "--stop-at 2 epochs: an amount in tokens, steps or % is expected"),
    ],
)
def test_a_position_that_is_none_is_refused_before_anything_is_trained(
    tiny_recipe, tmp_path, capsys, amount, words
):
    assert main(["run", str(tiny_recipe), "--out", str(tmp_path / "run"), "--stop-at", amount]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert not list(tmp_path.glob("run/stages/*"))


def test_what_nobody_works_on_is_stopped(start, tmp_path):
    start("run", Quantity(40, "%"))

    def status():
        [row] = list_runs(tmp_path)
        return [stage["status"] for stage in row["stages"]]

    assert status() == ["stopped"]
    folder = RunFolder(tmp_path / "run")
    with folder.lock(folder.facts()["name"]):
        assert status() == ["running"]
    start("run")
    assert status() == ["done"]
