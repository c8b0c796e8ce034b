"""The loop: batches from a position to the stage's end, whatever is learnt from them.

Guarantees: it builds nothing and knows no file but the metrics: model, optimizer, batches, saving and
evaluating are given to it. What it does at a step depends on the position alone, so an interrupted stage
that goes on from (weights, optimizer state, position) takes the same steps as one that was never stopped.
Ctrl-C and SIGTERM finish the step and save; a second one stops at once, which loses the steps since the
last save and nothing else.
Costs: one wait for the device and one line of metrics a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from cupola import json_lines
from cupola.data.batch import Batch
from cupola.display import Display, Task, count
from cupola.errors import CupolaError, Interrupted
from cupola.json_lines import Record
from cupola.objectives import Objective
from cupola.parallel.device import peak_memory
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import Clock
from cupola.recipe.quantity import Quantity
from cupola.train.memory import keep_freed_memory
from cupola.train.metrics import MetricsWriter, final_loss
from cupola.train.step import StepResult, train_step
from cupola.train.stopping import StopRequest

SKIPS_IN_A_ROW = 10
"""So many steps without a finite gradient, one after the other, end the run."""


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        step: steps of the stage that are done, skipped ones included.
        position: tokens of the stage consumed.
        seconds: of training, over all starts of the stage.
        global_step: steps of the whole run that are done.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    global_step: int = 0


@dataclass(frozen=True)
class StageSetup:
    """The ready parts of a stage.

    Attributes:
        name: the stage's, for people and for TensorBoard.
        batches: from a position, an iterator of batches that is also a context manager (`data.Loader`).
        start: where training begins or goes on.
        metrics: the file of metrics; rows after `start.step` have been cut away.
        save: called with the progress when a checkpoint is due, after Ctrl-C, and at the end.
        save_every, evaluate_every: intervals on the stage's clock.
        evaluate: called with the progress and whether this is the stage's end; returns figures for the
            curves, such as {"bits_per_byte": 1.9}; may be nested.
        flops_per_token: FLOPs of the model per token, forward and backward, for rows of a given length.
        peak_flops: the machine's measured FLOP/s (`train.peak`).
        tensorboard: folder of event files, or None.
    """

    name: str
    clock: Clock
    engine: LocalEngine
    optimizer: Optimizer
    objective: Objective
    batches: Callable[[int], AbstractContextManager[Iterator[Batch]]]
    metrics: Path
    save: Callable[[Progress], None]
    save_every: Quantity
    evaluate: Callable[[Progress, bool], dict[str, Any]]
    evaluate_every: Quantity
    flops_per_token: Callable[[int], float]
    peak_flops: float
    start: Progress = field(default_factory=Progress)
    tensorboard: Path | None = None


@dataclass(frozen=True)
class StageResult:
    """What came of a stage.

    Attributes:
        final_loss: mean training loss of the last 5% of the stage; None if no step was finite.
        skipped: steps that made no update, over all starts.
        evaluation: what `evaluate` returned at the end.
    """

    progress: Progress
    final_loss: float | None
    skipped: int
    evaluation: dict[str, Any]


def train_stage(setup: StageSetup, display: Display) -> StageResult:
    """Train from `setup.start` to the end of the stage, save, and evaluate.

    Raises:
        Interrupted: after a signal; the step under way is finished and saved (not after a second signal).
        CupolaError: too many steps in a row were not finite, or a disk is full; nothing was saved after.
    """
    progress = Progress(**vars(setup.start))
    keep_freed_memory()
    with StopRequest(display) as stop:
        try:
            writer = MetricsWriter(setup.metrics, setup.tensorboard, setup.name, progress.global_step)
            try:
                _run(setup, progress, writer, stop, display)
                evaluation = _evaluate(setup, progress, writer, at_end=True)
                _raise_if_asked(setup, progress, stop)
            finally:
                writer.close()
        except KeyboardInterrupt:
            raise Interrupted(
                f"stage {setup.name}: stopped at once; the same command goes on from the last checkpoint"
            ) from None
    rows = json_lines.read_whole(setup.metrics)
    skipped = sum(bool(row.get("skipped")) for row in rows)
    return StageResult(progress, final_loss(rows), skipped, evaluation)


def _run(
    setup: StageSetup, progress: Progress, writer: MetricsWriter, stop: StopRequest, display: Display
) -> None:
    """Every step that is left, and what is due between them; ends saved."""
    clock, skips = setup.clock, 0
    with (
        display.task(setup.name, total=clock.end, unit="tokens") as task,
        setup.batches(progress.position) as batches,
    ):
        task.at(progress.position)
        before = time.perf_counter()
        for batch in batches:
            learning_rate = clock.learning_rate(batch.start, batch.end)
            result = train_step(
                setup.engine,
                setup.optimizer,
                setup.objective,
                batch,
                learning_rate,
                clock.stage.gradient_clip,
            )
            now = time.perf_counter()
            row = _advance(setup, progress, batch, result, learning_rate, now - before)
            writer.write(row)
            _show(task, row)
            skips = skips + 1 if result.skipped else 0
            _judge_skips(setup, progress, result, skips, display)
            at_end = progress.position >= clock.end
            if not at_end and clock.due(setup.evaluate_every, batch.start, batch.end):
                _evaluate(setup, progress, writer, at_end=False)
            if at_end or stop.asked or clock.due(setup.save_every, batch.start, batch.end):
                writer.sync()
                setup.save(progress)
            if stop.asked:
                break
            before = time.perf_counter()
    _raise_if_asked(setup, progress, stop)


def _raise_if_asked(setup: StageSetup, progress: Progress, stop: StopRequest) -> None:
    """After a signal; everything up to here is saved."""
    if stop.asked:
        raise Interrupted(
            f"stage {setup.name}: stopped after step {progress.step}, which is saved; "
            "the same command goes on from there"
        )


def _advance(
    setup: StageSetup,
    progress: Progress,
    batch: Batch,
    result: StepResult,
    learning_rate: float,
    seconds: float,
) -> Record:
    """Move the progress past a batch, and describe the step as a row of metrics."""
    progress.step += 1
    progress.global_step += 1
    progress.position = batch.end
    progress.seconds += seconds
    tokens = batch.end - batch.start
    length = setup.clock.sequence_length(batch.start)
    flops = tokens * setup.flops_per_token(length)
    return {
        "step": progress.step,
        "global_step": progress.global_step,
        "tokens": batch.end,
        "loss": result.loss,
        **result.metrics,
        "learning_rate": learning_rate,
        "gradient_norm": result.gradient_norm,
        "skipped": result.skipped,
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / setup.peak_flops,
        "batch_tokens": tokens,
        "sequence_length": length,
        "shares": {name: part / tokens for name, part in batch.tokens_by_source.items()},
        "memory_bytes": peak_memory(setup.engine.device),
        "seconds": seconds,
    }


def _show(task: Task, row: Record) -> None:
    task.at(row["tokens"])
    task.note(
        f"loss {row['loss']:.3f}  {count(row['tokens_per_second'])} tokens/s  "
        f"{row['mfu']:.0%} of peak  lr {row['learning_rate']:.2g}"
    )


def _judge_skips(
    setup: StageSetup, progress: Progress, result: StepResult, skips: int, display: Display
) -> None:
    if not result.skipped:
        return
    display.warn(
        f"stage {setup.name}: step {progress.step} is skipped: its loss is {result.loss:g} and its "
        f"gradient's norm {result.gradient_norm:g}; the weights are as before"
    )
    if skips >= SKIPS_IN_A_ROW:
        raise CupolaError(
            f"stage {setup.name}: {skips} steps in a row were not finite, up to step {progress.step}; lower "
            "the learning rate or lengthen its warm-up, and run again: it goes on from the last checkpoint"
        )


def _evaluate(setup: StageSetup, progress: Progress, writer: MetricsWriter, at_end: bool) -> dict[str, Any]:
    figures = setup.evaluate(progress, at_end)
    writer.draw("heldout", figures, progress.global_step)
    return figures
