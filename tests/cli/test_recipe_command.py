"""`cupola recipe show|schema|list`: what they print, and that `show` prints a recipe."""

import json

import pytest

from cupola.cli import main
from cupola.recipe.json_schema import schema
from cupola.recipe.loading import dump, load


def test_show_prints_a_recipe_that_loads_to_the_same(capsys, tmp_path):
    assert main(["recipe", "show", "quickstart", "--set", "stages.pretrain.learning_rate=3e-4"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(path) == load("quickstart", ["stages.pretrain.learning_rate=3e-4"])


def test_show_as_json_is_the_last_line(capsys):
    assert main(["recipe", "show", "quickstart", "--json", "--set", "seed=5", "--set", "model=cpu-1m"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown == json.loads(json.dumps(dump(load("quickstart", ["seed=5", "model=cpu-1m"]))))
    assert (shown["seed"], shown["model"]["layers"]) == (5, 10)


def test_show_of_a_wrong_recipe(capsys):
    assert main(["recipe", "show", "quickstart", "--set", "model.layres=5"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --set model.layres=5: unknown key; did you mean model.layers?\n"
    assert captured.out == ""


def test_schema_to_the_screen_and_to_a_file(capsys, tmp_path):
    assert main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert main(["recipe", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == schema()
    assert main(["recipe", "schema", "--json", "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"path": str(tmp_path / "s.json")}
    assert json.loads((tmp_path / "s.json").read_text()) == schema()


def test_list(capsys):
    assert main(["recipe", "list"]) == 0
    text = capsys.readouterr().out
    assert "quickstart" in text
    assert "8,030,261,248" in text
    assert main(["recipe", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"quickstart", "own_text"} <= {recipe["name"] for recipe in listed["recipes"]}
    size = 124_439_808
    gpt2 = {"name": "gpt2-small", "vocabulary": 50257, "parameters": size, "active_parameters": size}
    assert gpt2 in listed["models"]
    mixtral = next(row for row in listed["models"] if row["name"] == "mixtral-8x7b")
    assert (mixtral["parameters"], mixtral["active_parameters"]) == (46_702_792_704, 12_879_925_248)


@pytest.mark.parametrize("arguments", [[], ["show"], ["schema"], ["list"]])
def test_help_has_examples(capsys, arguments):
    assert main(["recipe", *arguments, "--help"]) == 0
    assert "Examples:\n    cupola recipe" in capsys.readouterr().out
