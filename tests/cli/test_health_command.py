"""`cupola health`: the last look as a table and as JSON, and what it says where there is none."""

import json
from pathlib import Path

import pytest

from cupola.cli import main
from tests.report.synthetic import write_run


def look(step: int) -> dict:
    return {
        "step": step,
        "tokens": 1000 * step,
        "faults": {"idle_experts": "60% of the experts of layer_01 never fire"} if step == 20 else {},
        "residual_rms": {"embedding": 0.02, "layer_00": 1.25, "layer_01": None},
        "idle_experts": {"layer_01": 0.6},
        "gradient_norm": {"norm": 0.5, "layer_00": 1e-7, "layer_01": 3.0, "embedding": 12345.0},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", steps=12)
    lines = "".join(json.dumps(look(step)) + "\n" for step in (10, 20))
    (folder / "stages/01-pretrain/health.jsonl").write_text(lines + '{"step": 30, "tok')
    return folder


def test_table(run, capsys):
    assert main(["health", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage pretrain, step 20, 20,000 tokens"
    assert lines[1].split() == ["residual", "idle", "gradient"]
    assert [line.split() for line in lines[2:6]] == [
        ["embedding", "0.02", "1.23e+04"],
        ["layer", "00", "1.25", "1e-07"],
        ["layer", "01", "not", "finite", "60.0%", "3"],
        ["norm", "0.5"],
    ]
    assert lines[6] == "! 60% of the experts of layer_01 never fire"
    assert len({len(line) for line in lines[1:6]}) == 1


def test_json(run, capsys):
    assert main(["health", str(run), "--stage", "pretrain", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown == {"stage": "pretrain", **look(20)}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (["--stage", "midtrain"], "stage midtrain was not looked at yet; `health: 10 steps` in the recipe"),
        (["--stage", "finetune"], "--stage finetune: no such stage;"),
        ([], "no stage was looked at yet"),
    ],
)
def test_nothing_to_show(run, capsys, stage, expected):
    if not stage:
        (run / "stages/01-pretrain/health.jsonl").unlink()
    assert main(["health", str(run), *stage]) == 2
    assert expected in capsys.readouterr().err
