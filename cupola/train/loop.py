"""The loop: batches from a position to the stage's end, whatever is learnt from them.

Guarantees: it builds nothing and knows no file but the metrics: model, optimizer, batches, saving and
evaluating are given to it. What it does at a step depends on the position alone, so an interrupted stage
that goes on from (weights, optimizer state, position) takes the same steps as one that was never stopped.
Ctrl-C and SIGTERM finish the step and save; a second one stops at once, which loses the steps since the
last save and nothing else. A stage that pauses at a position (`stop_at`) has seen the schedules of the whole
stage: it is the beginning of the full run, not a shorter one.
Costs: one wait for the device and one line of metrics a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer as TorchOptimizer

from cupola import json_lines
from cupola.data.batch import Batch
from cupola.display import Display, Task, count
from cupola.errors import CupolaError, Interrupted
from cupola.json_lines import Record
from cupola.objectives import Objective
from cupola.parallel.device import peak_memory
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import Clock, StepValues
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Optimizer, Stage
from cupola.train.health import Watch
from cupola.train.memory import give_back_freed_memory, keep_freed_memory
from cupola.train.metrics import MetricsWriter, final_loss
from cupola.train.pace import Pace
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
        health: what looks at the numbers inside, or None.
        stop_at: pause, evaluated and saved, after the step that reaches this position; None: at the end.
        may_be_left: whether training can go on from a position; where not, saving and stopping wait.
        unit: what the clock counts.
        pace: of the machine, probed now and then between steps; or None.
    """

    name: str
    clock: Clock
    engine: LocalEngine
    optimizer: TorchOptimizer
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
    health: Watch | None = None
    stop_at: int | None = None
    may_be_left: Callable[[int], bool] = lambda position: True
    unit: str = "tokens"
    pace: Pace | None = None

    def pauses_at(self, position: int) -> bool:
        """Whether training stops here although the stage goes on."""
        reached = self.stop_at is not None and self.stop_at <= position < self.clock.end
        return reached and self.may_be_left(position)


@dataclass(frozen=True)
class StageResult:
    """What came of a stage.

    Attributes:
        paused: it stopped at `stop_at`; the rest of it is still to do.
        final_loss: mean training loss of the last 5% of the stage; None if no step was finite.
        skipped: steps that made no update, over all starts.
        evaluation: what `evaluate` returned at the end; empty where it paused.
    """

    progress: Progress
    final_loss: float | None
    skipped: int
    evaluation: dict[str, Any]
    paused: bool = False


def train_stage(setup: StageSetup, display: Display) -> StageResult:
    """Train from `setup.start` to the end of the stage, or to where it pauses, save, and evaluate.

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
                if not setup.pauses_at(progress.position):
                    _run(setup, progress, writer, stop, display)
                paused = setup.pauses_at(progress.position)
                evaluation = {} if paused else _evaluate(setup, progress, writer, at_end=True)
                _raise_if_asked(setup, progress, stop)
            finally:
                writer.close()
        except KeyboardInterrupt:
            raise Interrupted(
                f"stage {setup.name}: stopped at once; the same command goes on from the last checkpoint"
            ) from None
    rows = json_lines.read_whole(setup.metrics)
    skipped = sum(bool(row.get("skipped")) for row in rows)
    return StageResult(progress, final_loss(rows), skipped, evaluation, paused)


def _run(
    setup: StageSetup, progress: Progress, writer: MetricsWriter, stop: StopRequest, display: Display
) -> None:
    """Every step that is left, and what is due between them; ends saved."""
    clock, skips = setup.clock, 0
    with (
        display.task(setup.name, total=clock.end, unit=setup.unit) as task,
        setup.batches(progress.position) as batches,
    ):
        task.at(progress.position)
        due_since = progress.position
        before = time.perf_counter()
        for batch in batches:
            values = clock.values(batch.start, batch.end)
            look = None if setup.health is None else setup.health.begin(batch)
            if look is not None:
                before += look.seconds  # which are no time of training
            result = train_step(
                setup.engine,
                setup.optimizer,
                setup.objective,
                batch,
                values,
                clock.stage.gradient_clip,
            )
            now = time.perf_counter()
            row = _advance(setup, progress, batch, result, values, now - before)
            writer.write(row)
            if setup.health is not None and look is not None:
                writer.draw("health", setup.health.finish(look, row), progress.global_step)
            _show(task, row)
            skips = skips + 1 if result.skipped else 0
            _judge_skips(setup, progress, result, skips, display)
            if setup.may_be_left(progress.position):
                leaving = _between(setup, progress, writer, stop, due_since)
                due_since = progress.position
                if leaving:
                    break
            before = time.perf_counter()
    _raise_if_asked(setup, progress, stop)


def _between(
    setup: StageSetup, progress: Progress, writer: MetricsWriter, stop: StopRequest, since: int
) -> bool:
    """Evaluate, save, probe the machine's pace, if that is due since a position; whether training is to be
    left here."""
    position, clock = progress.position, setup.clock
    if setup.pace is not None:
        setup.pace.due()
    at_end, pausing = position >= clock.end, setup.pauses_at(position)
    evaluating = not at_end and (pausing or clock.due(setup.evaluate_every, since, position))
    saving = at_end or pausing or stop.asked or clock.due(setup.save_every, since, position)
    if evaluating:
        give_back_freed_memory()
        _evaluate(setup, progress, writer, at_end=False)
        give_back_freed_memory()
    if saving:
        writer.sync()
        setup.save(progress)
    return pausing or stop.asked


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
    values: StepValues,
    seconds: float,
) -> Record:
    """Move the progress past a batch, and describe the step as a row of metrics."""
    progress.step += 1
    progress.global_step += 1
    progress.position = batch.end
    progress.seconds += seconds
    counted = batch.end - batch.start
    trained = sum(m.tokens.numel() for m in batch.microbatches)
    if setup.unit == "tokens":
        tokens, length = counted, setup.clock.sequence_length(batch.start)
    else:  # the clock counts questions: what was trained on, and its longest row
        tokens, length = trained, max(m.tokens.shape[1] for m in batch.microbatches)
    flops = sum(m.tokens.numel() * setup.flops_per_token(m.tokens.shape[1]) for m in batch.microbatches)
    return {
        "step": progress.step,
        "global_step": progress.global_step,
        "tokens": batch.end,
        "loss": result.loss,
        **result.metrics,
        **batch.figures,
        **_of_schedules(setup.clock.stage, values),
        "gradient_norm": result.gradient_norm,
        "skipped": result.skipped,
        "tokens_per_second": tokens / seconds,
        "flops": flops,
        "mfu": flops / seconds / setup.peak_flops,
        "batch_tokens": tokens,
        "sequence_length": length,
        "shares": {name: part / counted for name, part in batch.tokens_by_source.items()},
        "memory_bytes": peak_memory(setup.engine.device),
        "seconds": seconds,
    }


def _of_schedules(stage: Stage, values: StepValues) -> Record:
    """The learning rate, and whatever else changes over the stage."""
    optimizer = stage.optimizer or Optimizer()
    changing = {
        "weight_decay": optimizer.weight_decay,
        "momentum": optimizer.momentum,
        "z_loss": stage.z_loss,
    }
    row: Record = {"learning_rate": values.learning_rate}
    for name, curve in changing.items():
        if len(curve.points) > 1:
            row[name] = getattr(values, name)
    return row


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
