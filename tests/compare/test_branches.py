"""`cupola compare RUN:STAGE ...`: figures are the runs' own, lineage is what the weights came through."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cupola import json_lines
from cupola.cli import main
from cupola.display import Display
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.origin import read_origin
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.pipeline.test_grpo import GRPO
from tests.pipeline.test_sft import SFT, chat_recipe  # noqa: F401

PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n} it is.", "rejected": "No."} for n in range(60)]
REWARDS = {"rl": {"finished": 1.0}, "chance": {"finished": 0.5, "random": 1.0}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branches")


@pytest.fixture
def runs(chat_recipe: Path, tmp_path: Path, kept: Path) -> Path:  # noqa: F811
    """`base` (pretrain, sft, and branches of it) and `next`, which begins with its sft."""
    if not (kept / "base").exists():
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
        recipe = yaml.safe_load(chat_recipe.read_text())
        recipe["corpora"]["pairs"] = {"files": "pairs.jsonl", "format": "preference", "heldout": 0.2}
        short = {**SFT, "tokens": "4 steps"}
        dpo = {**short, "objective": "dpo", "data": {"pairs": 1}, "tokens": "6 steps"}
        recipe["stages"] = {
            "pretrain": {**recipe["stages"]["pretrain"], "tokens": 1000},
            "sft": short,
            "dpo": dpo,
            "more": {**short, "parent": "sft"},
            "scratch": {**short, "carry": []},
        }
        policy = {**GRPO["policy"], "max_completion_length": 4}
        for name, rewards in REWARDS.items():
            grpo = {**GRPO, "tokens": "1 steps", "parent": "sft", "policy": {**policy, "rewards": rewards}}
            recipe["stages"][name] = grpo
        chat_recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        assert run(load(chat_recipe), kept / "base", None, Display(), check_first=False).error is None
        recipe |= {"begin": {"weights": str(kept / "base"), "stage": "sft"}, "stages": {"sft": short}}
        del recipe["model"], recipe["tokenizer"]
        chat_recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        loaded = load(chat_recipe, [], read_origin)
        assert run(loaded, kept / "next", None, Display(), check_first=False).error is None
    shutil.copytree(kept, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def compared(capsys, *arguments: str) -> dict:
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_figures_are_those_of_the_stages(runs, capsys):
    result = compared(capsys, f"{runs}/base:dpo", f"{runs}/base:more")
    assert result["comparison"] == str(runs / "base-stages")
    base = RunFolder(runs / "base")
    for found, stage in zip(result["stages"], (base.stage(3, "dpo"), base.stage(4, "more")), strict=True):
        facts = stage.facts()
        for key in ("tokens", "steps", "seconds", "final_loss", "heldout_bits_per_byte", "metrics"):
            assert found[key] == facts[key]
        assert found["heldout"] == {name: each["bits_per_byte"] for name, each in facts["heldout"].items()}
    assert [found["lineage"] for found in result["stages"]] == [
        ["pretrain", "sft", "dpo"],
        ["pretrain", "sft", "more"],
    ]
    assert "preference_accuracy" in result["stages"][0]["metrics"]
    assert any("compare them by source" in line for line in result["cautions"])
    saved = json.loads((runs / "base-stages" / "comparison.json").read_text())
    assert saved == result


def test_table_and_picture(runs, capsys, monkeypatch):
    drawn = {}
    from matplotlib.axes import Axes

    plot = Axes.plot

    def spy(axes, *arguments, **style):
        drawn.setdefault(axes.get_title(loc="left"), []).append((style["label"], arguments))
        return plot(axes, *arguments, **style)

    monkeypatch.setattr(Axes, "plot", spy)
    assert main(["compare", f"{runs}/base:dpo", "base:more"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"weights came through +pretrain > sft > dpo +pretrain > sft > more", table)
    assert re.search(r"preference_accuracy +[\d.]+ +–", table)
    assert re.search(r"bits per byte of manual +[\d.]+ +[\d.]+", table)
    svg = (runs / "base-stages" / "metrics-by-step.svg").read_text()
    assert svg.startswith("<svg")
    assert "<svg" in (runs / "base-stages" / "comparison.html").read_text()
    evaluations = json_lines.read_whole(runs / "base/stages/03-dpo/evaluations.jsonl")
    lines = [points for label, points in drawn["held-out preference_accuracy"] if label == "dpo"]
    x, y = lines[0]
    assert np.array_equal(x, [row["step"] for row in evaluations])
    assert np.allclose(y, [row["metrics"]["preference_accuracy"] for row in evaluations])


def test_of_different_rewards_it_is_said(runs, capsys):
    assert main(["compare", f"{runs}/base:rl", f"{runs}/base:chance", f"{runs}/base:dpo"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"rewards +finished +0\.5 x finished, random +–", printed.out)
    assert "their rewards differ" in printed.err
    result = compared(capsys, f"{runs}/base:rl", f"{runs}/base:dpo")
    assert [found["rewards"] for found in result["stages"]] == [REWARDS["rl"], {}]
    assert not any("rewards differ" in line for line in result["cautions"])


def test_stages_of_two_runs_and_what_a_run_began_with(runs, capsys):
    result = compared(capsys, f"{runs}/next", f"{runs}/base:scratch", "--out", str(runs / "both"))
    assert [found["label"] for found in result["stages"]] == ["next:sft", "base:scratch"]
    assert [found["lineage"] for found in result["stages"]] == [["base:sft", "sft"], ["scratch"]]
    assert result["comparison"] == str(runs / "both")
    whole = compared(capsys, str(runs / "base"), "--out", str(runs / "whole"))
    assert [found["label"] for found in whole["stages"]] == [
        "pretrain",
        "sft",
        "dpo",
        "more",
        "scratch",
        "rl",
        "chance",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{runs}/base:ppo"],
            "no stage ppo there; {runs}/base has pretrain, sft, dpo, more, scratch, rl, chance",
        ),
        (["{runs}/base:dpo", "{runs}/base"], "{runs}/base:dpo is named twice; name each stage once"),
        (["{runs}/base:dpo", "quickstart"], "quickstart: is no stage of a run (RUN:STAGE)"),
        (["{runs}/base", "--seeds", "3"], "--seeds: is for recipes"),
        (["{runs}/nothing:dpo"], "nothing: is not the folder of a run"),
        (["{runs}/base", "--out", "{runs}/base"], "is the folder of one run; choose another with --out"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, message, runs, capsys):
    assert main(["compare", *(argument.format(runs=runs) for argument in arguments)]) == 2
    assert message.format(runs=runs) in capsys.readouterr().err.splitlines()[-1]
