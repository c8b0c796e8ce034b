"""`cupola sweep` on real runs: who goes on, from where, judged by what."""

import json
import math
import shlex
import xml.etree.ElementTree

import pytest

from cupola.cli import main
from cupola.compare import sweeping
from cupola.compare.fleet import Outcome
from cupola.compare.halving import parse_over
from cupola.compare.sweeping import plan_sweep
from cupola.display import Display
from cupola.pipeline.stage import pause_position
from cupola.recipe.clock import Clock
from cupola.recipe.loading import load
from cupola.recipe.quantity import Quantity
from tests.compare.test_compare import lines
from tests.report.test_page import parse

RATE = "stages.pretrain.learning_rate"
LATER = "stages.b={data: {manual: 1}, tokens: 999, learning_rate: 1e-3}"


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


@pytest.fixture
def on_paper(monkeypatch):
    """Runs that only write down what a run would that pauses where it is told: every step, one evaluation."""

    class OnPaper:
        evaluated, figure, positions = True, 2.0, ()

        def run_jobs(self, jobs, at_once, display):
            return {job.folder: self.run(job) for job in jobs}

        def run(self, job):
            if "--stop-at" not in job.options:
                return Outcome("failed", "ends at the first rung")
            clock = Clock(load(job.recipe).stages["pretrain"])
            asked = Quantity.parse(job.options[job.options.index("--stop-at") + 1])
            pause = pause_position("pretrain", clock, asked)
            stage = job.folder / "stages/01-pretrain"
            stage.mkdir(parents=True, exist_ok=True)
            rows = [
                {"step": step, "tokens": end}
                for step, (begin, end) in enumerate(clock.steps(), 1)
                if begin < pause
            ]
            self.positions += (rows[-1]["tokens"],)
            (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if self.evaluated:
                look = {"step": rows[-1]["step"], "whole": False, "bits_per_byte": self.figure}
                (stage / "evaluations.jsonl").write_text(json.dumps(look) + "\n")
            return Outcome("done")

    found = OnPaper()
    monkeypatch.setattr(sweeping, "run_jobs", found.run_jobs)
    monkeypatch.setattr(sweeping, "_write", lambda result: None)  # drawing is what takes time here
    return found


def tried(recipe, out, trials, factor, *settings):
    over = parse_over(f"{RATE}=1e-4..1e-1:log", trials)
    stage, planned = plan_sweep(str(recipe), over, factor, settings, None)
    return sweeping.sweep(str(recipe), over, factor, stage, planned, out, 1, Display())


@pytest.mark.parametrize(
    ("trials", "factor", "tokens", "batch"),
    [
        (6, 6, 6 * 64 + 2, 64),  # a sixth is 64.33 tokens: the first step is within a token of it
        (6, 6, 6 * 2**20, 2**20),  # 16.6667% of it is three tokens further
        (81, 3, 81 * 2**22, 2**22),
    ],
)
def test_a_rung_is_looked_at_where_its_trials_pause(
    tiny_recipe, tmp_path, on_paper, trials, factor, tokens, batch
):
    settings = (f"stages.pretrain.tokens={tokens}", f"stages.pretrain.batch_tokens={batch}")
    result = tried(tiny_recipe, tmp_path / "out", trials, factor, *settings)
    assert len(result.rungs[0].figures) == trials
    assert set(on_paper.positions[:trials]) == {batch}


def test_a_trial_without_evaluation_and_one_that_diverged_are_told_apart(tiny_recipe, tmp_path, on_paper):
    on_paper.evaluated = False
    result = tried(tiny_recipe, tmp_path / "a", 3, 3)
    assert "no evaluation at 33% of pretrain" in result.failures[0]
    on_paper.evaluated, on_paper.figure = True, math.nan
    result = tried(tiny_recipe, tmp_path / "b", 3, 3)
    assert result.failures[0] == "its held-out loss is not finite"


def test_it_is_said_where_whole_steps_make_trials_unequal_at_a_rung(tiny_recipe, tmp_path, on_paper):
    over = parse_over("stages.pretrain.batch_tokens=256..4096", 3)
    stage, planned = plan_sweep(str(tiny_recipe), over, 3, (), None)
    result = sweeping.sweep(str(tiny_recipe), over, 3, stage, planned, tmp_path / "out", 1, Display())
    assert sorted({*on_paper.positions}) == [4096, 4352]
    assert [line for line in result.cautions if "have trained on 4,096 to 4,352 tokens" in line]


def test_the_next_command_is_of_the_same_recipe(tiny_recipe, tmp_path, on_paper):
    result = tried(tiny_recipe, tmp_path / "out", 3, 3, "model.layers=1", "stages.pretrain.data={manual: 1}")
    result.rungs[-1].figures.update({0: 2.0, 1: 1.5})
    [note] = [note for note in result.notes if "cupola compare" in note]
    assert shlex.split(note[note.index("`") :].strip("`).")) == [
        *("cupola", "compare", str(tiny_recipe), "--vary", f"{RATE}=0.0001,0.00316", "--seeds", "3"),
        *("--set", "model.layers=1", "--set", "stages.pretrain.data={manual: 1}", "--until", "pretrain"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--over", "stages.pretrain.rate=0.5..2.0"], "variant rate=0.5: --set stages.pretrain.rate=0.5"),
        (["--over", "model.heads=1..9"], "variant heads="),
        (["--over", f"{RATE}=3..1"], "the range is empty"),
        (["--over", f"{RATE}=1e-3..1e-2", "--until", "sft"], "no such stage"),
        (["--over", f"{RATE}=1e-3..1e-2", "--set", "stages.pretrain.tokens=1 epochs"], "in tokens or steps"),
        (["--over", "seed=1..9"], "--over seed: is not swept: a seed is chance"),
        (["--over", "scale.microbatch_tokens=64..512"], "is not swept"),
        (["--over", "checkpoint.keep=1..9"], "is not swept"),
        (["--over", "evaluate.tokens=100..900"], "is not swept"),
        (["--over", "health=10..90"], "is not swept"),
        (["--over", "corpora.manual.heldout=0.1..0.2"], "changes the held-out text"),
        (["--over", "tokenizer.vocabulary=400..900"], "`cupola compare --vary` judges by all of it"),
        (
            ["--over", "stages.pretrain.tokens=2000..9000"],
            "not equally long (2,000 to 9,000 tokens), so what is best would be what trains longest: it sets",
        ),
        (
            ["--over", "stages.pretrain.batch_tokens=256..512", "--set", "stages.pretrain.tokens=99 steps"],
            "the horizon of stage pretrain is 99 steps, so a larger batch trains on more tokens",
        ),
        (
            ["--over", "stages.pretrain.batch_tokens=256..4096", "--trials", "3"],
            "variant batch_tokens=4096: stage pretrain has too few steps (1) to compare trials at 33% of it",
        ),
        (
            [*("--over", "stages.b.gradient_clip=1..9", "--until", "pretrain", "--set"), LATER],
            "has no effect on stage pretrain, which comes before b",
        ),
    ],
)
def test_bad_sweeps_are_one_line_and_leave_nothing(sweep, here, arguments, words):
    said = sweep(*arguments, status=2)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
    assert not sweep.out.exists()
