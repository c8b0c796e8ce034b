"""docs/models.md names every module and every family, so that it does not fall behind the code."""

import re
from pathlib import Path

import pytest

import cupola.models
from cupola.recipe.model import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
FOLDER = Path(cupola.models.__file__).parent


def test_the_parts_are_the_modules():
    parts = PAGE.split("## The parts\n")[1].split("**To add")[0]
    named = {
        name
        for line in parts.splitlines()
        for name in re.findall(r"\w+(?:\.py|/)", line[: 4 + len("init.py, draws.py")])
    }
    modules = {path.name for path in FOLDER.glob("*.py") if path.name != "__init__.py"}
    packages = {f"{path.parent.name}/" for path in FOLDER.glob("*/__init__.py")}
    assert named == modules | packages


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described(family):
    assert f"| `{family}` |" in PAGE
