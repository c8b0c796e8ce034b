"""`cupola plan --fit`: a known law comes back, with what it says of a larger run; without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cupola.cli import main
from cupola.cli.plan_fit import spread
from tests.compare.law_runs import LAW, recipe_of, size_of, write_grid, write_run

LARGER = (6, 128, 8_000_000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_grid(root)
    return root


@pytest.fixture
def larger(tmp_path: Path) -> Path:
    path = tmp_path / "larger.yaml"
    path.write_text(yaml.safe_dump({**recipe_of(*LARGER), "name": "larger"}))
    return path


def fitted(capsys, *arguments: object) -> dict:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    return found.err.strip()


def test_a_known_law_comes_back(runs, larger, capsys):
    found = fitted(capsys, larger, "--fit", runs)
    for name in ("floor", "a", "b", "alpha", "beta"):
        law = found["law"][name]
        assert law["value"] == pytest.approx(getattr(LAW, name), rel=0.02)
        assert law["low"] / 1.001 <= law["value"] <= law["high"] * 1.001
    expected = LAW.loss(size_of(*LARGER[:2]), LARGER[2])
    said = found["recipe"]
    assert (said["name"], said["parameters"], said["tokens"]) == ("larger", size_of(*LARGER[:2]), LARGER[2])
    assert said["predicted"] == pytest.approx(expected, rel=1e-3)
    assert said["low"] <= said["predicted"] <= said["high"]
    best = LAW.optimum(said["flops"])
    (optimum,) = found["optima"]
    assert optimum["parameters"]["value"] == pytest.approx(best.parameters, rel=0.05)
    assert optimum["parameters"]["low"] < 1.001 * best.parameters < 1.01 * optimum["parameters"]["high"]
    assert optimum["loss"] == pytest.approx(best.loss, rel=1e-3)


def test_the_object(runs, tmp_path, capsys):
    """Its keys; the run that is held back is not fitted on, though its folder is named twice."""
    outcome = LAW.loss(size_of(*LARGER[:2]), LARGER[2]) * 1.2
    held = write_run(tmp_path / "held", *LARGER, outcome)
    found = fitted(capsys, "--fit", runs, held, "--check", held, "--flops", "1e13", "--flops", "1e14")
    assert set(found) == {"stage", "unit", "count", "law", "runs", "check", "recipe", "optima", "notes"}
    assert set(found["law"]) == {"floor", "a", "b", "alpha", "beta", "exponent"}
    assert len(found["runs"]) == 12
    assert set(found["runs"][0]) == {
        *("run", "parameters", "tokens", "flops", "loss", "bits_per_byte", "fitted", "residual")
    }
    (check,) = found["check"]
    assert (check["loss"], check["inside"]) == (pytest.approx(outcome), False)
    assert check["predicted"] == pytest.approx(outcome / 1.2, rel=1e-3)
    assert [optimum["flops"] for optimum in found["optima"]] == pytest.approx([1e13, 1e14])
    assert found["recipe"] is None


def test_a_table_for_people(runs, larger, tmp_path, capsys):
    held = write_run(tmp_path / "held", *LARGER, LAW.loss(size_of(*LARGER[:2]), LARGER[2]))
    picture = tmp_path / "law.svg"
    assert main(["plan", str(larger), "--fit", str(runs), "--check", str(held), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    for words in (
        "law of 12 runs, stage pretrain",
        "alpha",
        "w96-2500k",
        "left out, held",
        "larger (",
        "best for",
    ):
        assert words in text
    assert re.search(r"left out, held .* came out at [\d.]+, [+-]0\.0\d%", text)
    svg = picture.read_text()
    assert svg.startswith("<svg")
    assert "held-out loss" in svg


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer": {"vocabulary": 640, "train_on": {"manuals": 1}}}, "has another tokenizer than"),
        (
            {"corpora": {n: {"python": "docstrings"} for n in ("speeches", "manuals")}},
            "has another text than",
        ),
        ({"stages": recipe_of(*LARGER, data={"speeches": 1})["stages"]}, "has another mixture than"),
        ({"stages": recipe_of(2, 32, "1 epoch")["stages"]}, "the horizon of pretrain is 1 epoch"),
    ],
)
def test_a_recipe_that_the_law_says_nothing_of(runs, tmp_path, capsys, change, words):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**recipe_of(*LARGER), **change}))
    assert words in refused(capsys, path, "--fit", runs)


def test_mixed_tokenizers_and_too_few(runs, tmp_path, capsys):
    odd = write_run(tmp_path / "odd", 2, 32, 600_000, 3.0, tokenizer="other")
    text = refused(capsys, "--fit", runs, odd)
    assert "odd: its tokenizer is not that of 12 of the 13 runs" in text
    few = [runs / f"w{width}-400k" for width in (32, 48, 64)]
    text = refused(capsys, "--fit", *few)
    assert "3 runs are too few, give 6 or more. What would add most" in text
    assert text.count(" parameters on ") == 3
    assert "\n" not in text


def test_options_that_do_not_go_together(runs, capsys):
    assert "--plot: goes with --fit" in refused(capsys, "quickstart", "--plot", "x.svg")
    assert "--on: means nothing to --fit" in refused(capsys, "--fit", runs, "--on", "h100:8")
    assert "needs a RECIPE" in refused(capsys, "--fit", runs, "--set", "seed=1")
    assert "RECIPE_OR_PRESET is missing" in refused(capsys)


def test_what_a_shell_makes_of_a_pattern(tmp_path):
    """`--fit runs/*` is many words; a recipe behind them stays one."""
    for name in "abc":
        (tmp_path / name).mkdir()
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert spread(["--fit", a, b, "r.yaml", "--check", c]) == ["--fit", a, "--fit", b, "r.yaml", "--check", c]
    assert spread(["--fit", "a-*", "b-*", "r.yaml"]) == ["--fit", "a-*", "--fit", "b-*", "r.yaml"]
    assert spread([a, "--fit", b, "--json", c]) == [a, "--fit", b, "--json", c]


def test_without_torch(runs):
    code = "import sys; from cupola.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "--fit", str(runs)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
