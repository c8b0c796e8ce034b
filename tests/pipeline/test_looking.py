"""Numerical health in a whole run: a row for each look whatever happens on the way."""

import json

import pytest

from cupola.display import Display
from cupola.json_lines import read_whole
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.pipeline.test_resume import Crash, Saboteur, final_weights

TIMES = ("seconds", "step_seconds")


def looks(folder):
    rows = read_whole(RunFolder(folder).stage(1, "pretrain").health)
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_looks_are_as_if_a_killed_run_had_never_stopped(tiny_recipe, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    looking = load(tiny_recipe, ["health=4 steps"])
    assert run(looking, straight, "pretrain", Display(), check_first=False).error is None
    with pytest.raises(Crash):  # after looks at 12 and 16, and a checkpoint before them
        run(looking, broken, "pretrain", Saboteur([17], "crash"), check_first=False)
    assert run(looking, broken, "pretrain", Display(), check_first=False).error is None
    assert looks(straight) == looks(broken)
    steps = json.loads((straight / "stages/01-pretrain/stage.json").read_text())["steps"]
    assert [row["step"] for row in looks(straight)] == list(range(4, steps + 1, 4))
    assert len(looks(straight)[0]["update_ratio"]) == 4  # two layers, embedding and head
    assert final_weights(straight) == final_weights(broken)
    report = run(load(tiny_recipe, ["health=off"]), straight, "pretrain", Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged"]  # how often one looks is no new model
    assert "Numerical health" in (straight / "report.html").read_text()
