"""When a stage is looked at, what is recorded of it, and what people are told."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola.json_lines import read_whole
from cupola.recipe.clock import Clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Health, Stage
from cupola.train import health
from cupola.train.health import Watch, interval, judge
from cupola.train.loop import StageSetup, train_stage
from tests.displays import Heard
from tests.train import test_loop
from tests.train.test_loop import STAGE, Killed, Run, at, figures, kill

TIMES = ("seconds", "step_seconds")


@pytest.fixture
def watching(monkeypatch):
    """Every stage that the loop's tests start is looked at every 4 steps."""

    def train(setup: StageSetup, display: Any):
        path = setup.metrics.with_name("health.jsonl")
        test_loop.cut_back(path, setup.start.step)
        every = Quantity(4, "steps")
        watch = Watch(
            path, every, setup.clock, setup.engine, setup.optimizer, setup.objective, setup.name, display
        )
        return train_stage(test_loop.replace(setup, health=watch), display)

    return lambda: monkeypatch.setattr(test_loop, "train_stage", train)


def looks(run: Run) -> list[dict[str, Any]]:
    rows = read_whole(run.folder / "health.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_looks_change_nothing_and_resume_repeats_them(tmp_path, watching):
    for name in ("plain", "watched", "killed"):
        (tmp_path / name).mkdir()
    plain = Run(tmp_path / "plain")
    plain.start()
    watching()
    watched = Run(tmp_path / "watched")
    watched.start(tensorboard=tmp_path / "curves")
    killed = Run(tmp_path / "killed", on_batch=at(14, kill))  # after the looks at 8 and 12, saved at 7
    with pytest.raises(Killed):
        killed.start()
    assert [row["step"] for row in looks(killed)] == [4, 8, 12]
    killed.on_batch = lambda step: None
    killed.start()
    for run in (watched, killed):
        for name, value in plain.weights().items():
            assert torch.equal(value, run.weights()[name]), name
        assert figures(run.rows()) == figures(plain.rows())
    steps = len(plain.rows())
    assert [row["step"] for row in looks(watched)] == list(range(4, steps + 1, 4))
    assert looks(watched) == looks(killed)
    row, metrics = looks(watched)[1], plain.rows()[7]
    assert row["tokens"] == metrics["tokens"]
    assert math.hypot(*row["gradient_norm"].values()) == pytest.approx(metrics["gradient_norm"], rel=1e-5)
    assert row["attention_logit_max"].keys() == {"layer_00"}
    assert curves(tmp_path / "curves") >= {"pretrain/health/update_ratio/layer_00", "pretrain/loss"}


def curves(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_trouble_is_told_once_of_each_kind(tmp_path, watching, monkeypatch):
    watching()
    monkeypatch.setattr(health, "LARGEST_SCORE", -1e9)
    run = Run(tmp_path, display=Heard())
    run.start()
    told = [line for line in run.display.warnings if "attention scores" in line]
    assert len(told) == 1
    assert told[0].startswith("stage pretrain: step 4: attention scores reach")
    assert all("attention_logit_max" in row["faults"] for row in looks(run))


@pytest.mark.parametrize(
    ("every", "tokens", "expected"),
    [
        ("off", "1000 steps", None),
        ("auto", "10000 steps", Quantity(200, "steps")),
        ("auto", "10001 steps", Quantity(201, "steps")),  # 50 looks, not 51
        ("auto", "300 steps", Quantity(25, "steps")),
        ("2%", "300 steps", Quantity(2, "%")),
    ],
)
def test_interval(every, tokens, expected):
    stage = {**STAGE, "tokens": tokens, "batch_tokens": 128, "sequence_length": 8}
    assert interval(Health(every=every), Clock(Stage.model_validate(stage))) == expected


SOUND = {
    "residual_rms": {"embedding": 0.1, "layer_00": 1.0, "layer_01": 2.0},
    "attention_logit_max": {"layer_00": 20.0, "layer_01": 99.0},
    "update_ratio": {"embedding": 1e-3, "layer_00": 1e-4, "head": 0.05},
    "dead_units": {"layer_00": 0.4},
    "idle_experts": {"layer_01": 0.5},
}


@pytest.mark.parametrize(
    ("changes", "at_peak", "kind", "words"),
    [
        ({"residual_rms": {"layer_00": 1.0, "layer_01": math.nan}}, True, "not_finite", "from layer_01 on"),
        ({"attention_logit_max": {"layer_00": 3e2}}, True, "attention_logit_max", "300 in layer_00"),
        ({"update_ratio": {"head": 0.2, "layer_00": 1e-3}}, True, "update_ratio", "head by 20%"),
        ({"update_ratio": {"head": 1e-3, "layer_00": 5e-6}}, True, "update_ratio_low", "layer_00 by 5.0e-06"),
        ({"update_ratio": {"head": 1e-3, "layer_00": 5e-6}}, False, None, ""),
        ({"update_ratio": {"head": math.nan}}, True, None, ""),
        (
            {"dead_units": {"layer_00": 0.1, "layer_01": 0.75}},
            True,
            "dead_units",
            "75% of the hidden units of",
        ),
        ({"idle_experts": {"layer_03": 0.6}}, True, "idle_experts", "60% of the experts of layer_03"),
        ({}, True, None, ""),
    ],
)
def test_judge(changes, at_peak, kind, words):
    found = judge({**SOUND, **changes}, at_peak)
    assert list(found) == ([] if kind is None else [kind])
    assert words in "".join(found.values())
