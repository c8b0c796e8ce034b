"""`cupola compare` on real runs: figures as recomputed from their files, reuse, failures, kill and resume."""

import html
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from itertools import pairwise

import numpy as np
import pytest
from filelock import FileLock

from cupola.cli import main
from cupola.compare.plots import over_seeds
from cupola.models import table
from cupola.recipe.clock import Clock
from cupola.recipe.loading import load
from tests.report.test_page import parse

SHORT = ["--set", "stages.midtrain=null", "--set", "stages.pretrain.tokens=1500"]
LAYERS = "model.layers="


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def compare(tiny_recipe, tmp_path):
    out = tmp_path / "out"

    def compare(*arguments, status=0):
        assert main(["compare", str(tiny_recipe), *SHORT, "--out", str(out), "--json", *arguments]) == status

    compare.out = out
    return compare


def row_lengths(stage):
    """The length of every row that the stage trains."""
    clock, position, found = Clock(stage), 0, []
    while position < clock.end:
        found.append(clock.sequence_length(position))
        position += found[-1]
    return found


def recomputed(run):
    """Figures of a run from its files alone."""
    stage = run / "stages/01-pretrain"
    rows, facts = lines(stage / "metrics.jsonl"), json.loads((run / "run.json").read_text())
    recipe = load(run / "recipe.yaml")
    last = [r for r in rows if r["tokens"] - r["batch_tokens"] >= 0.95 * rows[-1]["tokens"]] or rows[-1:]
    [whole] = [row for row in lines(stage / "evaluations.jsonl") if row["whole"]]
    return {
        "parameters": facts["parameters"],
        "tokens": sum(row["batch_tokens"] for row in rows),
        "flops": sum(
            length * table.flops_per_token(recipe.model, facts["vocabulary"], length)
            for length in row_lengths(recipe.stages["pretrain"])
        ),
        "seconds": sum(row["seconds"] for row in rows),
        "final_loss": np.average([r["loss"] for r in last], weights=[r["batch_tokens"] for r in last]),
        "bits_per_byte": whole["bits_per_byte"],
    }


def test_figures_reuse_and_what_is_not_counted(compare, here, capsys):
    compare("--vary", f"{LAYERS}1,2", "--seeds", "2")
    result = last_json(capsys)
    assert (result["status"], result["reused"], result["not_counted"]) == ("done", 0, [])
    bits = {}
    for variant in result["variants"]:
        own = []
        for run in variant["runs"]:
            expected = recomputed(compare.out / "runs" / run["run"].rpartition("/")[2])
            for name, value in expected.items():
                assert run[name] == pytest.approx(value, rel=1e-6), name
            own.append(expected)
        for name in own[0]:
            values = [figures[name] for figures in own]
            assert variant[name]["mean"] == pytest.approx(statistics.mean(values), rel=1e-6)
            assert variant[name]["deviation"] == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-9)
            assert (variant[name]["low"], variant[name]["high"]) == pytest.approx((min(values), max(values)))
        bits[variant["name"]] = [figures["bits_per_byte"] for figures in own]
    differences = [b - a for a, b in zip(bits["layers=1"], bits["layers=2"], strict=True)]
    assert result["variants"][0]["to_first"] is None
    assert result["variants"][1]["to_first"]["mean"] == pytest.approx(statistics.mean(differences))
    assert result["variants"][1]["to_first"]["deviation"] == pytest.approx(statistics.stdev(differences))

    written = (compare.out / "comparison.html").read_text()
    page = parse(written)
    assert all(address.startswith("#") for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    commands = [shlex.split(line) for line in re.findall("<code>(.*?)</code>", html.unescape(written))]
    assert len(commands) == 4
    for words in commands:
        settings = [value for option, value in pairwise(words) if option == "--set"]
        again = load(words[2], settings)
        assert again == load(compare.out / f"runs/{again.name}.yaml")
    mean = statistics.mean(bits["layers=2"])
    assert f"{mean:.3f} ± {statistics.stdev(bits['layers=2']):.3f}" in page.text
    for axis in ("tokens", "flops", "seconds"):
        svg = (compare.out / f"loss-by-{axis}.svg").read_text()
        assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
        assert "layers=1" in svg

    # A grid that shares layers=2 with the old one, under another name and with one seed more.
    here.ran.clear()
    compare("--variant", "deep: {model.layers: 2}", "--seeds", "3")
    result = last_json(capsys)
    assert here.ran == ["deep, seed 3"]
    assert (result["reused"], len(result["not_counted"])) == (2, 2)
    [variant] = result["variants"]
    assert [run["bits_per_byte"] for run in variant["runs"][:2]] == pytest.approx(bits["layers=2"])
    here.ran.clear()
    compare("--variant", "deep: {model.layers: 2}", "--seeds", "3")
    assert here.ran == []


def test_a_variant_that_fails_does_not_stop_the_others(compare, here, capsys):
    here.failing = {"layers=1"}
    compare("--vary", f"{LAYERS}1,2", status=1)
    out, said = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert here.ran == ["layers=1, seed 3", "layers=2, seed 3"]
    assert [v["runs"][0]["status"] for v in result["variants"]] == ["failed", "done"]
    assert result["variants"][0]["bits_per_byte"] is None
    assert result["variants"][1]["to_first"] is None
    assert result["variants"][1]["bits_per_byte"]["deviation"] is None
    assert said.splitlines()[-1].startswith(
        "error: 1 of 2 runs are not done: layers=1, seed 3: error: out of luck; the same command"
    )
    here.failing = set()
    here.ran.clear()
    compare("--vary", f"{LAYERS}1,2")
    assert here.ran == ["layers=1, seed 3"]


def test_folders_of_something_else_are_refused_and_left_alone(compare, here, capsys):
    compare.out.mkdir()
    (compare.out / "notes.txt").write_text("mine")
    compare(status=2)
    assert "holds files but no comparison" in capsys.readouterr().err
    (compare.out / "notes.txt").rename(compare.out / "plan.json")
    compare(status=2)
    assert "cannot be read" in capsys.readouterr().err
    (compare.out / "plan.json").write_text('{"kind": "sweep"}')
    compare(status=2)
    assert "is the folder of a sweep" in capsys.readouterr().err
    (compare.out / "plan.json").rename(compare.out / "ledger.jsonl")
    compare(status=2)
    assert "is the folder of one run" in capsys.readouterr().err
    assert here.ran == []


def test_the_band_over_seeds():
    x = np.array([0.0, 1, 2])
    same = over_seeds([(x, x), (x + 1, x + 2)])
    assert [list(values) for values in same] == [[0.5, 1.5, 2.5], [1, 2, 3], [0, 1, 2], [2, 3, 4]]
    at, mean, low, high = over_seeds([(x, x), (np.array([0.5, 4]), np.array([0.5, 4]))])
    assert (at[0], at[-1]) == (0.5, 2)
    for values in (mean, low, high):
        assert values == pytest.approx(at)


@pytest.mark.multiprocess
def test_interrupted_and_killed_it_goes_on(tiny_recipe, tmp_path, capsys):
    """Ctrl-C, then kill -9 of the command alone, then to the end, with every run in a process of its own.

    The model is as small as can be and the steps many, so that a signal comes before the end.
    """
    out = tmp_path / "out"
    tiny = ("model.layers=1", "model.width=16", "tokens=24000", "batch_tokens=128", "sequence_length=32")
    changes = [key if key.startswith("model") else f"stages.pretrain.{key}" for key in tiny]
    changes += ["stages.midtrain=null", "evaluate.every=100%", "evaluate.sample_tokens=1"]
    arguments = ["compare", str(tiny_recipe), "--out", str(out), "--json"]
    arguments += [word for change in changes for word in ("--set", change)]

    def written():
        return sum(path.stat().st_size for path in out.glob("runs/*/stages/*/metrics.jsonl"))

    def wait_until_it_has_trained(ended):
        before = written()
        while not ended():
            if written() > before:
                return True
            time.sleep(0.02)
        return False

    over = threading.Event()

    def interrupt():
        if wait_until_it_has_trained(over.is_set):
            os.kill(os.getpid(), signal.SIGINT)

    watch = threading.Thread(target=interrupt)
    watch.start()
    try:
        status = main(arguments)
    finally:
        over.set()
        watch.join()
    said = capsys.readouterr().err
    assert status == 130, said
    assert said.splitlines()[-1].startswith("interrupted: stopped with 0 of 1 runs done")
    [run] = [path for path in (out / "runs").iterdir() if path.is_dir()]
    events = [event["event"] for event in lines(run / "ledger.jsonl")]
    assert events[-1] == "stage_stopped"
    assert json.loads((out / "comparison.json").read_text())["status"] == "failed"

    command = [sys.executable, "-m", "cupola", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert wait_until_it_has_trained(lambda: process.poll() is not None), process.communicate()
    process.kill()
    process.communicate()
    with FileLock(run / ".lock", timeout=60):  # the run has seen it, and let go
        events = [event["event"] for event in lines(run / "ledger.jsonl")]
    assert events[-1] == "stage_stopped"
    assert "stage_resumed" in events

    assert main(arguments) == 0
    assert last_json(capsys)["status"] == "done"
    steps = [row["step"] for row in lines(run / "stages/01-pretrain/metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert b"cupola" in (run.with_name(f"{run.name}.log")).read_bytes()
