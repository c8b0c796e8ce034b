"""The loop on real parts: the loader over stores in memory, a small Transformer, each optimizer."""

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cupola import objectives, optim
from cupola.data.loader import Loader
from cupola.data.order import Order
from cupola.display import Display
from cupola.errors import CupolaError, Interrupted
from cupola.json_lines import read_whole
from cupola.models import build
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import Clock
from cupola.recipe.model import Model
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Stage
from cupola.train import loop
from cupola.train.loop import Progress, StageResult, StageSetup, train_stage
from cupola.train.metrics import cut_back
from tests.displays import Heard

VOCABULARY = 64
STAGE: dict[str, Any] = {
    "data": {"a": 0.7, "b": 0.3},
    "tokens": 4500,
    "sequence_length": {"0%": 8, "40%": 16},
    "batch_tokens": {"0%": 128, "25%": 256, "60%": 400},
    "learning_rate": {"peak": 1e-2, "warmup": "10%"},
}


class Store(SimpleNamespace):
    """Tokens in memory, with words that follow each other, so that there is something to learn."""

    @classmethod
    def of(cls, length: int, seed: int) -> "Store":
        steps = np.random.default_rng(seed).choice([1, 1, 1, 5], length)
        tokens = np.cumsum(steps).astype(np.uint16) % VOCABULARY
        facts = {"fingerprint": f"store {seed}", "delimiter": 0, "row_length": None, "learnt": None}
        return cls(tokens=tokens, length=length, **facts)


STORES = {"a": Store.of(3000, 1), "b": Store.of(2000, 2)}


class Killed(Exception):
    """In place of `kill -9`: nothing after it runs."""


@dataclass
class Run:
    """A stage that keeps its checkpoints in memory; each start builds everything anew."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    saved: dict[str, Any] | None = None
    saves: list[int] = field(default_factory=list)
    evaluations: list[tuple[int, bool]] = field(default_factory=list)
    module: Any = None
    evaluate: Callable[[Progress, bool], dict[str, float]] | None = None
    on_batch: Callable[[int], None] = lambda step: None
    display: Display = field(default_factory=Display)

    def start(self, **changes: Any) -> StageResult:
        stage = Stage.model_validate({**STAGE, **self.settings})
        clock = Clock(stage)
        order = Order.over(3, "pretrain", STORES, clock, stage.data)
        self.module = build(Model(layers=1, width=16, heads=2), VOCABULARY, seed=1)
        optimizer = optim.build(self.module, stage.optimizer)
        start = Progress()
        if self.saved is not None:
            self.module.load_state_dict(self.saved["weights"])
            optim.load_optimizer_state(optimizer, self.module, self.saved["optimizer"])
            start = Progress(**self.saved["progress"])

        def save(progress: Progress) -> None:
            copies = {
                key: value.clone() for key, value in optim.optimizer_state(optimizer, self.module).items()
            }
            weights = {key: value.clone() for key, value in self.module.state_dict().items()}
            self.saved = {"weights": weights, "optimizer": copies, "progress": dict(vars(progress))}
            self.saves.append(progress.step)

        def evaluate(progress: Progress, at_end: bool) -> dict[str, float]:
            self.evaluations.append((progress.step, at_end))
            return self.evaluate(progress, at_end) if self.evaluate else {"bits_per_byte": 1.0}

        metrics = self.folder / "metrics.jsonl"
        cut_back(metrics, start.step)
        setup = StageSetup(
            name="pretrain",
            clock=clock,
            engine=LocalEngine(self.module, self.precision, "cpu"),  # type: ignore[arg-type]
            optimizer=optimizer,
            objective=objectives.build(stage),
            batches=lambda position: Watched(
                Loader(order, STORES, position, microbatch_tokens=64), self.on_batch, clock.step_at(position)
            ),
            metrics=metrics,
            save=save,
            save_every=Quantity(7, "steps"),
            evaluate=evaluate,
            evaluate_every=Quantity(50, "%"),
            flops_per_token=lambda length: 1e6,
            peak_flops=1e9,
            start=start,
        )
        return train_stage(replace(setup, **changes), self.display)

    def rows(self) -> list[dict[str, Any]]:
        return read_whole(self.folder / "metrics.jsonl")

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}


class Watched:
    """A loader that calls back before each batch with the number of the step that it is for."""

    def __init__(self, loader: Loader, on_batch: Callable[[int], None], step: int) -> None:
        self.loader, self.on_batch, self.step = loader, on_batch, step

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *exception: object) -> None:
        self.loader.close()

    def __iter__(self) -> "Watched":
        return self

    def __next__(self) -> Any:
        batch = next(self.loader)
        self.step += 1
        self.on_batch(self.step)
        return batch


def at(step: int, action: Callable[[], Any]) -> Callable[[int], None]:
    return lambda now: action() if now == step else None


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


FIGURES = (
    "step",
    "tokens",
    "loss",
    "gradient_norm",
    "learning_rate",
    "batch_tokens",
    "sequence_length",
    "shares",
)


def figures(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What of the rows must be equal between two runs: all but times and memory."""
    return [tuple(row[name] for name in FIGURES) for row in rows]


@pytest.fixture(scope="module", params=["adamw", "muon", "soap"])
def whole(request, tmp_path_factory) -> Run:
    """A stage from beginning to end."""
    run = Run(tmp_path_factory.mktemp("whole"), {"optimizer": request.param})
    run.result = run.start()  # type: ignore[attr-defined]
    return run


def same(run: Run, whole: Run) -> None:
    for name, value in whole.weights().items():
        assert torch.equal(value, run.weights()[name]), name
    assert figures(run.rows()) == figures(whole.rows())
    assert run.result.final_loss == whole.result.final_loss  # type: ignore[attr-defined]


def test_the_stage_crosses_every_change(whole):
    """What the resume tests below rest on."""
    rows = whole.rows()
    assert {row["sequence_length"] for row in rows} == {8, 16}
    assert len({row["batch_tokens"] for row in rows}) >= 3
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]


@pytest.mark.parametrize("steps", [(3, 12), (9, 10)])
def test_killed_twice_is_as_if_never(whole, tmp_path, steps):
    """Killed before the first save and after; each start goes on from (weights, optimizer, position)."""
    run = Run(tmp_path, whole.settings)
    for step in steps:
        run.on_batch = at(step, kill)
        with pytest.raises(Killed):
            run.start()
    run.on_batch = lambda step: None
    run.result = run.start()
    same(run, whole)


def test_interrupted_twice_is_as_if_never(whole, tmp_path):
    run = Run(tmp_path, whole.settings)
    for step in (5, 13):
        run.on_batch = at(step, interrupt)
        with pytest.raises(Interrupted, match=f"stopped after step {step}, which is saved"):
            run.start()
        assert run.saved["progress"]["step"] == step
        assert run.rows()[-1]["step"] == step
    run.on_batch = lambda step: None
    run.result = run.start()
    same(run, whole)


def test_a_wrong_position_would_be_noticed(whole, tmp_path):
    """The tests above can fail: one batch left out changes the weights."""
    run = Run(tmp_path, whole.settings)
    run.on_batch = at(9, kill)
    with pytest.raises(Killed):
        run.start()
    clock = Clock(Stage.model_validate({**STAGE, **run.settings}))
    run.saved["progress"].update(position=clock.boundary(8), step=8)
    run.on_batch = lambda step: None
    run.start()
    assert not torch.equal(run.weights()["head.weight"], whole.weights()["head.weight"])


def test_bf16_resumes_bit_for_bit_too(tmp_path):
    runs = [Run(tmp_path / name, precision="bf16") for name in ("whole", "killed")]
    runs[0].result = runs[0].start()
    runs[1].on_batch = at(10, kill)
    with pytest.raises(Killed):
        runs[1].start()
    runs[1].on_batch = lambda step: None
    runs[1].result = runs[1].start()
    same(runs[1], runs[0])


def test_rows_hold_what_a_reader_needs(whole):
    clock = Clock(Stage.model_validate({**STAGE, **whole.settings}))
    rows = whole.rows()
    for row, (start, end) in zip(rows, clock.steps(), strict=True):
        assert row["tokens"] == end
        assert row["batch_tokens"] == end - start
        assert row["learning_rate"] == clock.learning_rate(start, end)
        assert row["sequence_length"] == clock.sequence_length(start)
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * 1e6 / 1e9)
        assert row["tokens_per_second"] == pytest.approx(row["batch_tokens"] / row["seconds"])
        assert row["memory_bytes"] > 10**6
        assert 0 < row["gradient_norm"] < math.inf
        assert row["skipped"] is False
    progress = whole.result.progress
    assert (progress.step, progress.position) == (len(rows), clock.end)
    assert progress.seconds == pytest.approx(sum(row["seconds"] for row in rows))


def test_first_loss_is_ln_v(whole):
    assert whole.rows()[0]["loss"] == pytest.approx(math.log(VOCABULARY), rel=0.03)


def test_what_is_due_when(whole):
    last = len(whole.rows())
    assert whole.saves == [*range(7, last, 7), last]
    half = next(row["step"] for row in whole.rows() if row["tokens"] >= 2250)
    assert whole.evaluations == [(half, False), (last, True)]
    assert whole.result.evaluation == {"bits_per_byte": 1.0}


def test_steps_of_the_run_go_on_from_the_stage_before(tmp_path):
    run = Run(tmp_path)
    result = run.start(start=Progress(global_step=100))
    assert [row["global_step"] - row["step"] for row in run.rows()] == [100] * result.progress.step


def test_a_stage_at_its_end_is_evaluated_and_not_trained(whole, tmp_path):
    """Killed in the last evaluation: the weights are saved, and the next start only evaluates."""
    run = Run(tmp_path, whole.settings, evaluate=lambda progress, at_end: kill() if at_end else {})
    with pytest.raises(Killed):
        run.start()
    rows = run.rows()
    run.evaluate = None
    run.result = run.start()
    assert run.rows() == rows
    same(run, whole)


def test_a_signal_in_the_last_evaluation_stops_before_the_stage_is_done(tmp_path):
    def evaluate(progress: Progress, at_end: bool) -> dict[str, float]:
        if at_end:
            interrupt()
        return {}

    run = Run(tmp_path, evaluate=evaluate)
    with pytest.raises(Interrupted):
        run.start()
    assert run.saved["progress"]["step"] == len(run.rows())


def test_sigterm_is_like_ctrl_c(tmp_path):
    run = Run(tmp_path, on_batch=at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted, match="stopped after step 4"):
        run.start()
    assert run.saves == [4]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = Run(tmp_path, on_batch=at(10, lambda: (interrupt(), interrupt())))
    with pytest.raises(Interrupted, match="stopped at once"):
        run.start()
    assert run.saves == [7]
    assert [row["step"] for row in run.rows()] == list(range(1, 10))


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Run(tmp_path).start()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def poison(run: Run, steps: set[int]) -> None:
    """The hidden states of these steps are not numbers."""

    def on_batch(step: int) -> None:
        for handle in handles:
            handle.remove()
        if step in steps:
            handles.append(run.module.norm.register_forward_hook(lambda _, __, hidden: hidden * math.nan))

    handles: list[Any] = []
    run.on_batch = on_batch


def test_a_step_that_is_not_finite_is_skipped_loudly_and_counted(tmp_path):
    recorder = Heard()
    run = Run(tmp_path, display=recorder)
    poison(run, {4, 5})
    result = run.start()
    assert result.skipped == 2
    assert [row["step"] for row in run.rows() if row["skipped"]] == [4, 5]
    assert run.rows()[3]["loss"] is None
    assert [text.split(": ")[1] for text in recorder.warnings] == ["step 4 is skipped", "step 5 is skipped"]
    assert math.isfinite(result.final_loss)
    assert all(bool(torch.isfinite(value).all()) for value in run.weights().values())


def test_too_many_in_a_row_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SKIPS_IN_A_ROW", 3)
    run = Run(tmp_path)
    poison(run, {2, 3, 5, 9, 10, 11})
    with pytest.raises(CupolaError, match="3 steps in a row were not finite, up to step 11") as caught:
        run.start()
    assert not isinstance(caught.value, Interrupted)
    assert run.saves == [7]


def test_no_thread_is_left(tmp_path):
    import threading

    run = Run(tmp_path, on_batch=at(3, kill))
    with pytest.raises(Killed):
        run.start()
    assert not any(thread.name.startswith("loader of") for thread in threading.enumerate())
