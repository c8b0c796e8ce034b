"""The plan of a run: made once before its stages, kept when it goes on, held against what came of it."""

import json
import re

import pytest

from cupola.cli import main
from cupola.display import Display
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.run import run
from cupola.plan.own import StagePlan
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity
from cupola.report.planned import comparisons
from cupola.report.records import read_records
from tests.displays import Heard

PARTS = {"evaluation", "samples", "checkpoints", "health", "reference", "start"}


def plans(folder):
    return RunFolder(folder).facts()["plan"]


def events(folder):
    return [event for event in RunFolder(folder).ledger.events() if event["event"] == "plan"]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    return tmp_path_factory.mktemp("foreseen") / "run"


@pytest.fixture
def finished(tiny_recipe, made_once, capsys):
    """The folder of a run, what `--json` printed of it, and what was said; made once."""
    printed = made_once.with_suffix(".json")
    if not made_once.exists():
        assert main(["run", str(tiny_recipe), "--out", str(made_once), "--json"]) == 0
        out, said = capsys.readouterr()
        printed.write_text(json.dumps([json.loads(out.splitlines()[-1]), said.splitlines()]))
    return made_once, *json.loads(printed.read_text())


def test_a_run_is_planned_and_compared(finished):
    folder, report, said = finished
    kept = plans(folder)
    [event] = events(folder)
    assert event["stages"] == kept
    assert list(kept) == ["pretrain", "midtrain"]
    for stage in report["stages"]:
        plan = StagePlan.from_json(kept[stage["name"]])
        assert set(plan.parts) == PARTS
        assert plan.steps == stage["steps"]
        assert plan.memory_bytes > 10**7
        assert all(phase.seconds > 0 for phase in plan.phases)
        assert all(seconds > 0 for name, seconds in plan.parts.items() if name not in ("reference", "health"))
        compared = report["plan"]["stages"][stage["name"]]
        for figure in ("memory_bytes", "step_seconds", "total_seconds"):
            assert compared[figure]["planned"] > 0
            assert compared[figure]["happened"] > 0
        assert compared["total_seconds"]["planned"] == pytest.approx(plan.total)
        assert compared["step_seconds"]["planned"] == pytest.approx(plan.training / plan.steps)
        assert compared["step_seconds"]["happened"] == pytest.approx(
            stage["seconds"] / stage["steps"], rel=0.01
        )
        assert compared["total_seconds"]["happened"] > stage["seconds"]
    assert report["plan"]["total_seconds"]["planned"] == pytest.approx(
        sum(StagePlan.from_json(plan).total for plan in kept.values())
    )
    lines = said
    assert any(re.match(r"plan pretrain: .* \(training .*peak memory", line) for line in lines)
    assert any(re.match(r"pretrain: peak memory .*planned .*a step .*in all", line) for line in lines)
    page = (folder / "report.html").read_text()
    assert "Planned and happened" in page


def test_a_paused_run_keeps_its_plan_and_compares_its_steps(tiny_recipe, tmp_path):
    """And a stage that is added later is planned by itself."""
    recipe, folder = load(tiny_recipe), tmp_path / "run"
    report = run(recipe, folder, "pretrain", Display(), stop_at=Quantity(50, "%"))
    [compared] = report.plan["stages"].values()
    assert compared["total_seconds"] is None
    assert compared["step_seconds"]["happened"] > 0
    assert "it is not done" in compared["notes"]
    before = plans(folder)
    assert list(before) == ["pretrain"]
    heard = Heard()
    report = run(recipe, folder, None, heard)
    after = plans(folder)
    assert after["pretrain"] == before["pretrain"]
    assert list(report.plan["stages"]) == ["pretrain", "midtrain"]
    assert [list(event["stages"]) for event in events(folder)] == [["pretrain"], ["midtrain"]]
    assert not any(line.startswith("plan pretrain") for line in heard.said)
    one, other = comparisons(read_records(folder)).values()
    assert one.total is None
    assert "begun 2 times" in one.notes
    plan = StagePlan.from_json(before["pretrain"])
    assert one.step.planned == pytest.approx(plan.training / plan.steps)
    assert other.total is not None


def test_without_a_check_there_is_no_plan(tiny_recipe, tmp_path):
    folder = tmp_path / "run"
    report = run(load(tiny_recipe, ["stages.midtrain=null"]), folder, None, Display(), check_first=False)
    assert report.status == "done"
    assert report.plan == {"stages": {}, "total_seconds": None}
    assert "Planned and happened" not in (folder / "report.html").read_text()


def test_a_plan_of_another_stage_is_not_compared(finished):
    records = read_records(finished[0])
    assert list(comparisons(records)) == ["pretrain", "midtrain"]
    records.facts["plan"]["pretrain"]["key"] = "another"
    assert list(comparisons(records)) == ["midtrain"]
    records.facts["plan"] = ["damaged"]
    assert comparisons(records) == {}


def test_nothing_of_the_trial_stays(finished):
    assert not (finished[0] / ".trial").exists()
