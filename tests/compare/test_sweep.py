"""`cupola sweep` on real runs: who goes on, from where, judged by what."""

import json
import xml.etree.ElementTree

import pytest

from cupola.cli import main
from tests.compare.test_compare import lines
from tests.report.test_page import parse

RATE = "stages.pretrain.learning_rate"


@pytest.fixture
def sweep(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "out"

    def sweep(*arguments, status=0):
        short = ["--set", "stages.midtrain=null", "--set", "stages.pretrain.tokens=3000"]
        command = ["sweep", str(tiny_recipe), *short, "--out", str(out), "--json", *arguments]
        assert main(command) == status
        printed, said = capsys.readouterr()
        return json.loads(printed.splitlines()[-1]) if printed.strip() else said

    sweep.out = out
    return sweep


def test_the_best_go_on_from_where_they_paused(sweep, here):
    arguments = ("--over", f"{RATE}=1e-3..1e-1:log", "--trials", "3", "--factor", "3")
    result = sweep(*arguments)
    assert [rung["trials"] for rung in result["rungs"]] == [3, 2]
    found = []
    for trial in result["trials"]:
        stage = sweep.out / "runs" / trial["run"].rpartition("/")[2] / "stages/01-pretrain"
        rows = lines(stage / "metrics.jsonl")
        reached = next(row["step"] for row in rows if row["tokens"] >= 1000)
        evaluations = lines(stage / "evaluations.jsonl")
        [at_rung] = [row["bits_per_byte"] for row in evaluations if row["step"] == reached]
        whole = [row["bits_per_byte"] for row in evaluations if row["whole"]]
        assert trial["bits_per_byte"] == [at_rung, *(whole or [None])]
        events = [
            event for event in lines(stage.parents[1] / "ledger.jsonl") if event["event"] == "stage_resumed"
        ]
        assert [event["step"] for event in events] == ([reached] if whole else [])
        found.append((trial["value"], at_rung, whole))
    assert [value for value, _, _ in found] == [1e-3, 1e-2, 1e-1]
    survivors = sorted(found, key=lambda trial: trial[1])[:2]
    assert [bool(trial[2]) for trial in found] == [trial in survivors for trial in found]
    best = min(survivors, key=lambda trial: trial[2])[0]
    assert result["best"] == best
    assert result["at_edge"] == (best != 1e-2)
    svg = xml.etree.ElementTree.fromstring((sweep.out / "sweep.svg").read_text())
    assert svg.tag.endswith("svg")
    text = parse((sweep.out / "sweep.html").read_text()).text
    assert ("lies at the edge" in text) == result["at_edge"]

    here.ran.clear()
    again = sweep(*arguments)
    assert here.ran == []
    assert again["trials"] == result["trials"]


def test_a_trial_that_fails_is_out_and_named(sweep, here):
    here.failing = {"learning_rate=0.1"}
    result = sweep("--over", f"{RATE}=1e-3..1e-1:log", "--trials", "3")
    assert [trial["state"] for trial in result["trials"]] == ["done", "done", "failed"]
    assert result["trials"][2]["why"] == "error: out of luck"
    assert result["best"] in (1e-3, 1e-2)
    here.failing = {"learning_rate"}
    said = sweep("--over", f"{RATE}=1e-3..2e-1:log", "--trials", "3", "--set", "seed=9", status=1)
    assert said["best"] is None
    assert said["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--over", "stages.pretrain.rate=0.5..2.0"], "variant rate=0.5: --set stages.pretrain.rate=0.5"),
        (["--over", "model.heads=1..9"], "variant heads="),
        (["--over", f"{RATE}=3..1"], "the range is empty"),
        (["--over", f"{RATE}=1e-3..1e-2", "--until", "sft"], "no such stage"),
        (["--over", f"{RATE}=1e-3..1e-2", "--set", "stages.pretrain.tokens=1 epochs"], "in tokens or steps"),
    ],
)
def test_bad_sweeps_are_one_line_and_leave_nothing(sweep, here, arguments, words):
    said = sweep(*arguments, status=2)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
    assert not sweep.out.exists()
