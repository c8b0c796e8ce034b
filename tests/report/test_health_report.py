"""Numerical health in the report: every layer is there, nothing breaks where something is missing."""

import json
import math
import re

import pytest

from cupola.report import read_records, write_report
from cupola.report.health import _curves, _even_choice, faults_of, health_svgs
from tests.report.synthetic import write_run
from tests.report.test_page import parse


def look(step: int, layers: int = 12, **changes):
    """A row in which layer n has n + step for a residual RMS."""
    names = [f"layer_{n:02d}" for n in range(layers)]
    row = {
        "step": step,
        "tokens": 4096 * step,
        "faults": {},
        "residual_rms": {"embedding": 0.5, **{name: n + step for n, name in enumerate(names)}},
        "attention_logit_max": dict.fromkeys(names, 7.0),
        "update_ratio": {**dict.fromkeys(names, 1e-3), "head": math.nan},
        "dead_units": dict.fromkeys(names, 0.25),
    }
    return {**row, **changes}


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", steps=30)
    fault = {"attention_logit_max": "scores reach <b>300</b> in layer_02"}
    rows = [look(10), look(20, faults=fault), look(30, faults=fault)]
    lines = [json.dumps(row).replace("NaN", "null") for row in rows] + ['{"step": 4, "to']
    (folder / "stages/01-pretrain/health.jsonl").write_text("\n".join(lines))
    (folder / "stages/02-midtrain/health.jsonl").write_text(json.dumps(look(5, residual_rms=None)) + "\n")
    return folder


def test_the_page_shows_it(run):
    page = write_report(run).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", parse(page).text)
    assert "Numerical health" in text
    assert "pretrain, step 20: scores reach <b>300</b> in layer_02 (2 of 3 looks)" in text
    assert page.count("<svg") == 8 + 4
    assert "1 line of the records could not be read" in text
    assert len(set(re.findall(r' id="([^"]+)"', page))) == len(re.findall(r' id="([^"]+)"', page))


def test_a_run_that_was_not_looked_at_has_no_such_section(tmp_path):
    page = write_report(write_run(tmp_path / "run", steps=12)).read_text()
    assert "Numerical health" not in page


def test_curves_stand_at_the_tokens_of_the_run(run):
    first, second = read_records(run).stages
    assert _curves(first, "residual_rms")["layer_03"] == ([40960, 81920, 122880], [13, 23, 33])
    assert "head" not in _curves(first, "update_ratio")
    assert _curves(second, "attention_logit_max")["layer_00"][0] == [second.offset + 5 * 4096]
    assert _curves(second, "residual_rms") == {}
    assert _curves(first, "state_rms") == {}


def test_many_layers_are_few_lines_and_a_band(run):
    svg = health_svgs(read_records(run).stages)[0]
    assert "layer 00" in svg
    assert "layer 11" in svg
    assert "layer 05" not in svg
    assert _even_choice([str(n) for n in range(12)], 7) == ["0", "2", "4", "6", "7", "9", "11"]
    assert _even_choice(["a", "b"], 7) == ["a", "b"]


def test_nothing_looked_at_is_nothing_drawn():
    assert health_svgs([]) == []
    assert faults_of([]) == []
