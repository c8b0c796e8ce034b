"""`cupola suggest`: what it prints, writes and refuses, without torch."""

import json
import subprocess
import sys

import pytest
import yaml

from cupola.cli import main
from cupola.recipe.loading import load


def test_a_recipe(capsys):
    assert main(["suggest", "quickstart"]) == 0
    text = capsys.readouterr().out
    assert "arXiv 2503.04715" in text
    assert "constants not compared with the source: Kaplan" in text
    block = yaml.safe_load(text[text.index("\nstages:") :])
    assert list(block["stages"]) == ["pretrain"]
    assert block["stages"]["pretrain"]["optimizer"]["kind"] == "muon"


def test_json_is_the_last_line(capsys):
    assert main(["suggest", "--preset", "llama3-8b", "--tokens", "15T", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["subject"]["parameters"] == 8_030_261_248
    assert found["subject"]["tokens"] == 15 * 10**12
    assert all(one["source"] and one["formula"] and one["checked"] for one in found["estimates"])
    assert found["stage"]["learning_rate"]["peak"] > 0


def test_what_is_written_is_a_recipe(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["suggest", "quickstart", "--stage", "midtrain", "--write", "tuned.yaml", "--json"]) == 0
    stage = json.loads(capsys.readouterr().out.splitlines()[-1])["stage"]
    recipe = load("tuned.yaml")
    assert recipe.name == "quickstart-suggested"
    assert recipe.stages["midtrain"].learning_rate.peak == stage["learning_rate"]["peak"]
    assert recipe.stages["midtrain"].carry == ["weights", "optimizer"]
    assert main(["suggest", "tuned.yaml", "--write", "again.yaml"]) == 0
    assert load("again.yaml").stages["pretrain"].learning_rate.final == 0
    assert main(["suggest", "quickstart", "--set", "model.width=64", "--write", "narrow.yaml"]) == 0
    assert load("narrow.yaml").model.width == 64
    assert main(["suggest", "quickstart", "--write", "tuned.yaml"]) == 2
    assert "tuned.yaml: exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of RECIPE, --preset and --parameters, not none"),
        (["quickstart", "--preset", "cpu-1m"], "not RECIPE and --preset"),
        (["--preset", "cpu-1m", "--set", "seed=1"], "need a RECIPE"),
        (["--preset", "lama3-8b"], "did you mean llama3-8b?"),
        (["--parameters", "many"], "--parameters many:"),
        (["--parameters", "1B", "--tokens", "3"], "--tokens 3: a number of at least 1000 is expected"),
        (["quickstart", "--stage", "train"], "--stage train: there is none of that name; there are pretrain"),
        (["quickstart", "--set", "stages.pretrain.tokens=2 epochs"], "depend on the corpus; state --tokens"),
        (
            ["quickstart", "--tokens", "20k", "--sequence-length", "100000"],
            "is longer than the budget of 20,000",
        ),
    ],
)
def test_wrong_input(capsys, arguments, words):
    assert main(["suggest", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_it_needs_no_torch():
    code = (
        "import sys; from cupola.cli import main;"
        "status = main(['suggest', '--preset', 'llama3-8b', '--json']);"
        "print(status, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False"
