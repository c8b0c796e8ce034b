"""docs/recipe.md: its recipes load, and its commands print what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from cupola.errors import InputError
from cupola.recipe.document import read_document
from cupola.recipe.json_schema import schema
from cupola.recipe.loading import load

PAGE = (Path(__file__).parents[2] / "docs/recipe.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    (command, "\n".join(output))
    for kind, block in BLOCKS
    if kind == "console"
    for command, *output in (part.splitlines() for part in block.split("$ ")[1:])
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with every recipe of the page, by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETTERS", "/home/somebody/letters")
    found = {}
    for kind, block in BLOCKS:
        if kind == "yaml":
            match = re.search(r"^# file: (\S+)$", block, re.MULTILINE)
            assert match, f"a recipe without a name:\n{block}"
            found[match[1]] = tmp_path / match[1]
            found[match[1]].write_text(block, encoding="utf-8")
    return found


def test_the_recipes_load(files):
    wrong = files.pop("mistakes.yaml")
    loaded = {name: load(path) for name, path in files.items()}
    assert {name: recipe.name for name, recipe in loaded.items()} | {"mine.yaml": "mine"} == {
        name: name.removesuffix(".yaml") for name in files
    }
    assert list(loaded["longer.yaml"].stages) == ["pretrain", "long"]
    assert loaded["like_llama.yaml"].model.rope.rope_theta == 500_000
    assert loaded["mine.yaml"].corpora["mine"].files == "/home/somebody/letters/**/*.txt"
    with pytest.raises(InputError):
        load(wrong)


def test_the_whole_recipe_fits_the_schema(files):
    jsonschema.Draft202012Validator(schema()).validate(read_document(files["library.yaml"]).plain())


@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_the_commands_print_what_the_page_says(files, command, output):
    cupola = f"{shlex.quote(sys.executable)} -m cupola"
    result = subprocess.run(
        command.replace("cupola", cupola, 1),
        shell=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.stdout.strip() == output.strip()
