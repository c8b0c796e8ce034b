"""What an installed Cupola carries."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_carries_recipes_presets_and_catalogues(tmp_path):
    """Needs the network, for the build's own tools. `recipe/shipped`, a link here, is a folder there."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("cupola", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"cupola/recipe/shipped/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    wanted |= {
        f"cupola/recipe/presets/{path.name}" for path in (ROOT / "cupola/recipe/presets").glob("*.yaml")
    }
    wanted |= {f"cupola/plan/{path.name}" for path in (ROOT / "cupola/plan").glob("*.yaml")}
    assert len(wanted) > 20
    assert wanted <= carried
