"""Resume is bit-exact: however a run is interrupted, its weights end the same and each step is there once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.names import checkpoints
from cupola.display import Display, Task
from cupola.errors import Interrupted
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.listing import list_checkpoints
from cupola.pipeline.run import run
from cupola.recipe.loading import load
from tests.displays import Heard


class Crash(Exception):
    """Stands for whatever ends a process without warning."""


class Saboteur(Display):
    """Ends the run at given steps of training: by an exception (as a kill would) or by SIGINT."""

    def __init__(self, at: list[int], how: str) -> None:
        self.at, self.how, self.steps = sorted(at), how, 0

    def task(self, title: str, total: float | None = None, unit: str = ""):
        saboteur = self

        class Armed(Task):
            def at(self, done: float) -> None:
                if not unit.startswith(("tokens", "questions")):
                    return
                saboteur.steps += 1
                if saboteur.at and saboteur.steps >= saboteur.at[0]:
                    saboteur.at.pop(0)
                    if saboteur.how == "crash":
                        raise Crash
                    os.kill(os.getpid(), signal.SIGINT)

        import contextlib

        @contextlib.contextmanager
        def armed() -> Iterator[Task]:
            yield Armed()

        return armed()


def final_weights(folder: Path) -> dict[str, str]:
    """Stage -> hash of the weights that it ended with."""
    return {row["stage"]: row["weights_sha256"] for row in list_checkpoints(folder, True, Display())}


def steps_in_metrics(folder: Path, stage: int, name: str) -> list[int]:
    rows = RunFolder(folder).stage(stage, name).metrics.read_text().splitlines()
    return [json.loads(row)["step"] for row in rows]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("straight") / "run"


@pytest.fixture
def straight(tiny_recipe: Path, tmp_path: Path, trained_once: Path) -> Path:
    """The run without interruption, each test's own copy of it."""
    if not trained_once.exists():
        report = run(load(tiny_recipe), trained_once, None, Display(), check_first=False)
        assert [stage.status for stage in report.stages] == ["done", "done"]
    return shutil.copytree(trained_once, tmp_path / "straight", symlinks=True)


def assert_same_run(folder: Path, straight: Path) -> None:
    assert final_weights(folder) == final_weights(straight)
    for number, name in enumerate(("pretrain", "midtrain"), start=1):
        steps = steps_in_metrics(folder, number, name)
        assert steps == list(range(1, len(steps) + 1))
        assert steps == steps_in_metrics(straight, number, name)


@pytest.mark.parametrize("how", ["crash", "interrupt"])
def test_interrupted_anywhere_and_twice_in_a_row_ends_the_same(tiny_recipe, tmp_path, straight, how):
    folder = tmp_path / "broken"
    count = len(steps_in_metrics(straight, 1, "pretrain"))
    # In the first batch phase, right after it again, at the growth of the row, at the end, in the next stage.
    interruptions = 0
    for at in (2, 1, count // 2, 3, count // 3, 2, 1):
        try:
            report = run(load(tiny_recipe), folder, None, Saboteur([at], how), check_first=False)
        except Crash:
            interruptions += 1
            continue
        if report.error is None:
            break
        assert isinstance(report.error, Interrupted)
        assert report.stages[-1].status == "stopped"
        interruptions += 1
    report = run(load(tiny_recipe), folder, None, Display(), check_first=False)
    assert report.error is None
    assert interruptions >= 4
    assert_same_run(folder, straight)


def test_the_biases_that_even_experts_loads_are_resumed(tiny_recipe, tmp_path):
    experts = "model.experts={count: 4, active: 2, width: 16, score: sigmoid, balance: bias}"
    recipe = load(tiny_recipe, [experts])
    assert run(recipe, tmp_path / "straight", "pretrain", Display(), check_first=False).error is None
    with pytest.raises(Crash):
        run(recipe, tmp_path / "broken", "pretrain", Saboteur([7], "crash"), check_first=False)
    assert run(recipe, tmp_path / "broken", "pretrain", Display(), check_first=False).error is None
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "straight")
    newest = checkpoints(RunFolder(tmp_path / "broken").stage(1, "pretrain").checkpoints)[-1]
    assert checkpoint.load(newest).weights["blocks.0.feedforward.balance_bias"].any()
    rows = RunFolder(tmp_path / "broken").stage(1, "pretrain").metrics.read_text().splitlines()
    assert all(json.loads(row)["load_imbalance"] >= 1 for row in rows)


NO_ATTENTION = "heads: null, key_value_heads: null, qk_norm: null"


@pytest.mark.parametrize(
    "model",
    [
        f"{{family: mamba2, mamba2: {{head_width: 16, state: 8}}, {NO_ATTENTION}}}",
        f"{{family: rwkv7, rwkv7: {{head_width: 16}}, {NO_ATTENTION}}}",
        "{family: hybrid, pattern: [mamba2, sliding_attention], window: 8, mamba2: {head_width: 16}}",
        "{experts: {count: 4, active: 2, width: 16}}",
    ],
    ids=["mamba2", "rwkv7", "hybrid", "mixture"],
)
def test_every_family_resumes_bit_for_bit(model, tiny_recipe, tmp_path):
    """Documents, ramps and Muon as the recipe has them; killed in the middle, and gone on with."""
    recipe = load(tiny_recipe, [f"model={model}"])
    assert run(recipe, tmp_path / "straight", "pretrain", Display(), check_first=False).error is None
    with pytest.raises(Crash):
        run(recipe, tmp_path / "broken", "pretrain", Saboteur([7], "crash"), check_first=False)
    assert run(recipe, tmp_path / "broken", "pretrain", Display(), check_first=False).error is None
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "straight")


GROWTH = {
    "steps": {
        "sequence_length": "{0%: 16, 40%: 32, 70%: 64}",
        "batch_tokens": "{0%: 128, 30%: 320, 60%: 768}",
    },
    "evenly": {
        "sequence_length": "{points: {0%: 16, 80%: 64}, between: linear}",
        "batch_tokens": "{points: {0%: 128, 80%: 768}, between: linear, multiple: 64}",
        "data": "{points: {0%: {manual: 1}, 100%: {reference: 1}}, between: linear}",
        "z_loss": "{points: {0%: 1e-3, 100%: 0}, between: cosine}",
        "learning_rate": "{peak: 0.01, warmup: 10%, decay: 1-sqrt, decay_over: 40%, batch_rule: sqrt}",
    },
}


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("kind", ["adamw", "muon", "soap"])
def test_every_optimizer_resumes_bit_for_bit_through_every_kind_of_growth(
    kind, growth, tiny_recipe, tmp_path
):
    """Killed early and in the middle of the growth."""
    changing = "{points: {0%: 0.2, 100%: 0.0}, between: linear}"
    optimizer = f"{{kind: {kind}, weight_decay: {changing}"
    optimizer += ", momentum: {0%: 0.85, 30%: 0.95}}" if kind == "muon" else "}"
    settings = {**GROWTH[growth], "optimizer": optimizer}
    brief = ["evaluate={every: 100%, tokens: 16, prompts: [The], sample_tokens: 1}"]
    brief += ["stages.pretrain.tokens=9k"]
    recipe = load(
        tiny_recipe, [*brief, *(f"stages.pretrain.{key}={value}" for key, value in settings.items())]
    )
    assert run(recipe, tmp_path / "straight", "pretrain", Display(), check_first=False).error is None
    for at in (5, 11):
        with pytest.raises(Crash):
            run(recipe, tmp_path / "broken", "pretrain", Saboteur([at], "crash"), check_first=False)
    assert run(recipe, tmp_path / "broken", "pretrain", Display(), check_first=False).error is None
    assert final_weights(tmp_path / "broken") == final_weights(tmp_path / "straight")
    rows = RunFolder(tmp_path / "broken").stage(1, "pretrain").metrics.read_text().splitlines()
    seen = [json.loads(row) for row in rows]
    assert {row["sequence_length"] for row in seen} >= {16, 32, 64}
    assert len({row["batch_tokens"] for row in seen}) >= 3


@pytest.mark.multiprocess
def test_killed_processes_end_the_same(tiny_recipe, tmp_path, straight):
    """kill -9 at random moments of real processes, then once to the end."""
    folder = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "cupola",
        "run",
        str(tiny_recipe),
        "--out",
        str(folder),
        "--no-check",
        "--json",
    ]
    kills = 0
    for wait in (0.05, 0.2, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        metrics = RunFolder(folder).stage(1, "pretrain").metrics
        size = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= size):
            time.sleep(0.02)
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert [stage["status"] for stage in report["stages"]][-1] == "done"
    assert_same_run(folder, straight)


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(tiny_recipe, tmp_path, straight):
    folder = tmp_path / "damaged"
    count = len(steps_in_metrics(straight, 1, "pretrain"))
    with pytest.raises(Crash):
        run(load(tiny_recipe), folder, None, Saboteur([count - 2], "crash"), check_first=False)
    stage = RunFolder(folder).stage(1, "pretrain")
    newest = checkpoints(stage.checkpoints)[-1]
    weights = newest / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 64
    weights.write_bytes(data)

    display = Heard()
    run(load(tiny_recipe), folder, None, display, check_first=False)
    assert any(newest.name in text and "damaged" in text for text in display.warnings)
    assert any(event["event"] == "checkpoint_ignored" for event in RunFolder(folder).ledger.events())
    assert_same_run(folder, straight)


def test_a_second_run_does_nothing(tiny_recipe, straight):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if "checkpoints" in str(path)}
    report = run(load(tiny_recipe), straight, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged", "unchanged"]
    assert before == {
        path: path.stat().st_mtime_ns for path in straight.rglob("*") if "checkpoints" in str(path)
    }


def test_a_changed_later_stage_leaves_the_earlier_one_alone(tiny_recipe, straight):
    changed = load(tiny_recipe, ["stages.midtrain.learning_rate=1e-3"])
    report = run(changed, straight, None, Display(), check_first=False)
    assert [stage.status for stage in report.stages] == ["unchanged", "done"]
    kept = [path for path in (straight / "stages").iterdir() if path.name.startswith(".02-midtrain")]
    assert len(kept) == 1


def test_until_stops_and_goes_on(tiny_recipe, tmp_path, straight):
    folder = tmp_path / "until"
    first = run(load(tiny_recipe), folder, "pretrain", Display(), check_first=False)
    assert [stage.name for stage in first.stages] == ["pretrain"]
    run(load(tiny_recipe), folder, None, Display(), check_first=False)
    assert_same_run(folder, straight)
