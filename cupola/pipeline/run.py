"""`cupola run`: the stages of a recipe in order, each done once.

Idempotent like make: what has not changed is not done again, what was interrupted goes on from its newest
verified checkpoint, and everything that happens is an event in the ledger. Stopping loses nothing: the step
under way is finished and saved.
"""

import contextlib
import shlex
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cupola import storage
from cupola.chat.template import save_template
from cupola.checkpoint.names import checkpoints
from cupola.checkpoint.verifying import read_facts
from cupola.display import Display, duration
from cupola.errors import CupolaError, Interrupted
from cupola.evaluate import xz_bits
from cupola.models import table
from cupola.models.table.trained import refuse_unknown
from cupola.paths import runs_root
from cupola.pipeline.beginning import lay_out_beginning, own_tokenizer
from cupola.pipeline.decisions import Decisions, decide
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.foreseen import outcome, record_plan, say_outcome
from cupola.pipeline.memory import require_memory, running_out
from cupola.pipeline.mending import mend_records
from cupola.pipeline.plan import PlannedStage, plan_stages, require_parents, stage_names
from cupola.pipeline.preflight import preflight
from cupola.pipeline.prepare import Prepared, heldout_texts, prepare
from cupola.pipeline.stage import StageRun, pause_position, stage_clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Recipe
from cupola.report import read_records, write_report

Status = Literal["done", "unchanged", "paused", "stopped", "failed"]
"""Of a stage: `paused` is where `stop_at` asked for it, `stopped` by a signal."""


@dataclass(frozen=True)
class StageReport:
    """What became of one stage; `final_loss` is the mean training loss of the stage's last 5%."""

    name: str
    status: Status
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    heldout_bits_per_byte: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """What the stage's objective is judged by, such as `preference_accuracy`."""

    def as_json(self) -> dict[str, Any]:
        """The object of this stage, its metrics among its keys."""
        return {**{key: value for key, value in asdict(self).items() if key != "metrics"}, **self.metrics}


@dataclass
class RunReport:
    """What became of a run; `error` is what ended it early."""

    run: str
    stages: list[StageReport] = field(default_factory=list)
    error: CupolaError | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    """Of its stages, beside what happened; empty where there was no plan or nothing was trained."""

    def as_json(self) -> dict[str, Any]:
        """The object that `cupola run --json` prints; `status` is done, paused, interrupted or failed."""
        stages = [stage.as_json() for stage in self.stages]
        plan = {"plan": self.plan} if self.plan else {}
        return {"run": self.run, "status": self.status, "stages": stages, **plan}

    @property
    def status(self) -> Literal["done", "paused", "interrupted", "failed"]:
        """How the run as a whole ended."""
        if self.error is None:
            return "paused" if any(stage.status == "paused" for stage in self.stages) else "done"
        return "interrupted" if isinstance(self.error, Interrupted) else "failed"


def run(
    recipe: Recipe,
    out: Path | None,
    until: str | None,
    display: Display,
    check_first: bool = True,
    stop_at: Quantity | None = None,
    anew_from: str | None = None,
) -> RunReport:
    """Do what is left to do of a recipe.

    Args:
        out: the run's folder; by default `runs/<name>`.
        until: the last stage to run.
        check_first: dry-run every stage before the first start of this recipe.
        stop_at: pause the last of the stages to run at this position of its clock, saved and evaluated; the
            schedules stay those of the whole stage, so that a later call without it goes on bit-exactly.
        anew_from: train this stage and those after it again; what there is of them is set aside.

    Raises:
        InputError: the recipe, a source or the folder is not usable; nothing was trained.
    """
    names = stage_names(recipe, anew_from, until)
    refuse_unknown(recipe)
    folder = RunFolder(out or runs_root() / recipe.name)
    if anew_from is not None and not folder.begun:
        require_parents(recipe, names, done=())  # before there is a folder
    report = RunReport(str(folder.path))
    with folder.lock(recipe.name):
        try:
            _run(folder, recipe, names, report, display, check_first, stop_at, anew_from is not None)
        except KeyboardInterrupt:  # before, between or after the stages; in one the loop sees to it
            report.error = report.error or Interrupted("stopped; the same command goes on with what is done")
    return report


def _run(
    folder: RunFolder,
    recipe: Recipe,
    names: list[str],
    report: RunReport,
    display: Display,
    check_first: bool,
    stop_at: Quantity | None,
    anew: bool,
) -> None:
    begun = time.monotonic()
    display.say(f"run {recipe.name} in {folder.path}")
    mend_records(folder, recipe.name, display)
    recorded = folder.facts().get("decisions")
    if check_first and recorded is None:  # what has all been trained elsewhere needs no memory here
        require_memory(recipe)
    prepared = prepare(own_tokenizer(folder, recipe), display)
    folder.record(name=recipe.name)  # from here on the folder is this run's
    with running_out("measuring the machine"):
        decisions = decide(recipe, prepared.vocabulary, recorded, display)
    lay_out_beginning(folder, recipe, prepared, display)
    planned = plan_stages(recipe, prepared, decisions.precision, folder, names, display, anew)
    if check_first and any(stage.action != "unchanged" for stage in planned):
        require_memory(recipe, prepared.vocabulary)
    pause = None
    if stop_at is not None:
        last = planned[-1]
        clock = stage_clock(last.stage, prepared.train_sources(last.stage))
        pause = pause_position(last.name, clock, stop_at)
    # Not before the stages that no longer fit are set aside: a kill must not leave them under a new recipe.
    folder.record_decisions(decisions.as_json())
    folder.record_recipe(recipe)
    _keep_tokenizer(folder, prepared, display)
    _record_facts(folder, recipe, prepared, display)
    if check_first and any(stage.action == "begin" for stage in planned):
        _check_once(folder, recipe, prepared, decisions, planned, display)
    _run_stages(folder, recipe, prepared, decisions, planned, report, display, pause)
    if anew and report.status != "done":
        display.say(f"go on without --from {names[0]}, which would begin with it once more")
    if any(stage.status != "unchanged" for stage in report.stages):
        try:
            records = read_records(folder.path)
            report.plan = outcome(records, names)
            say_outcome(records, names, display)
            write_report(folder.path, records)
        except (OSError, CupolaError) as error:
            display.warn(f"the report could not be written: {error}")
    if report.error is None:
        _say_what_next(folder, recipe, report, time.monotonic() - begun, display)


def _run_stages(
    folder: RunFolder,
    recipe: Recipe,
    prepared: Prepared,
    decisions: Decisions,
    planned: list[PlannedStage],
    report: RunReport,
    display: Display,
    pause: int | None,
) -> None:
    plans = folder.facts().get("plan", {})
    for stage in planned:
        if stage.action == "unchanged":
            report.stages.append(_stage_report(stage, "unchanged"))
            display.say(f"stage {stage.name}: done before, unchanged")
            continue
        try:
            seconds = plans.get(stage.name, {}).get("training_seconds")
            with running_out(f"stage {stage.name}"):
                stop_at = pause if stage is planned[-1] else None
                result = StageRun(folder, recipe, prepared, decisions, stage, display).train(seconds, stop_at)
        except CupolaError as error:
            stopped = isinstance(error, Interrupted)
            with contextlib.suppress(CupolaError):  # the disk may be what failed
                event = "stage_stopped" if stopped else "stage_failed"
                folder.ledger.append(event, stage=stage.name, why=str(error))
            report.stages.append(_stage_report(stage, "stopped" if stopped else "failed"))
            report.error = error
            return
        report.stages.append(_stage_report(stage, "paused" if result.paused else "done"))


def _stage_report(stage: PlannedStage, status: Status) -> StageReport:
    ended = status in ("done", "unchanged")
    facts = stage.folder.facts() if ended else {}  # those of an earlier end are not this one's
    saved = checkpoints(stage.folder.checkpoints)
    if not ended and saved:  # not finished: where it can go on from
        with contextlib.suppress(CupolaError):  # a damaged one must not hide why the stage ended
            manifest = read_facts(saved[-1])
            facts = {"tokens": manifest["tokens"], "steps": manifest["step"], "seconds": manifest["seconds"]}
    return StageReport(
        stage.name,
        status,
        tokens=facts.get("tokens", 0),
        steps=facts.get("steps", 0),
        seconds=facts.get("seconds", 0.0),
        final_loss=facts.get("final_loss"),
        heldout_bits_per_byte=facts.get("heldout_bits_per_byte"),
        metrics=facts.get("metrics", {}),
    )


def _keep_tokenizer(folder: RunFolder, prepared: Prepared, display: Display) -> None:
    """Keep tokenizer and chat template in the run's folder; different ones there belong to an older recipe,
    and damaged ones are replaced."""
    facts = {"fingerprint": prepared.tokenizer.fingerprint, "template": prepared.template.fingerprint}
    if folder.tokenizer.is_dir():
        try:
            kept = storage.verify(folder.tokenizer)
            if all(kept.get(key) == value for key, value in facts.items()):
                return
        except CupolaError as error:
            display.warn(f"{error}; the run's tokenizer is written anew")
    with storage.new_folder(folder.tokenizer, facts) as aside:
        prepared.tokenizer.save(aside)
        save_template(prepared.template, aside)


def _record_facts(folder: RunFolder, recipe: Recipe, prepared: Prepared, display: Display) -> None:
    """What the report sets beside the figures: the model's size, and the held-out text through `xz -9`."""
    heldout = prepared.heldout_facts()
    known = folder.facts()
    if known.get("heldout") != heldout or "xz_bits_per_byte" not in known:
        xz = {name: xz_bits(heldout_texts(prepared.gathered[name])) for name in prepared.stores}
        folder.record(
            heldout=heldout,
            xz_bits_per_byte={name: bits.facts()["bits_per_byte"] for name, bits in xz.items()},
        )
    parameters = table.count(recipe.model, prepared.vocabulary)
    active = table.active_count(recipe.model, prepared.vocabulary)
    part = "" if active == parameters else f", of which a token meets {active:,}"
    display.say(f"model: {recipe.model.family}, {parameters:,} parameters{part}")
    folder.record(
        parameters=parameters,
        active_parameters=active,
        sources=prepared.facts,
        vocabulary=prepared.vocabulary,
    )


def _check_once(
    folder: RunFolder,
    recipe: Recipe,
    prepared: Prepared,
    decisions: Decisions,
    planned: list[PlannedStage],
    display: Display,
) -> None:
    """Dry-run the recipe before its first start; the ledger remembers what has been checked."""
    key = storage.digest([stage.key for stage in planned])
    if folder.facts().get("checked") == key:
        return
    import torch.utils.tensorboard  # noqa: F401  takes seconds, which are no stage's

    with running_out("check"):
        result = preflight(recipe, prepared, decisions, display, folder.path / ".trial")
    for stage in result.stages:
        display.say(f"check {stage.name}: first loss {stage.first_loss:.3f}{_expected(stage.expected_loss)}")
    folder.ledger.append("checked", **result.without_plans())
    folder.record(checked=key, check=result.without_plans())
    record_plan(folder, result, planned, display)


def _expected(loss: float | None) -> str:
    return "" if loss is None else f" (expected {loss:.3f})"


def _say_what_next(
    folder: RunFolder, recipe: Recipe, report: RunReport, seconds: float, display: Display
) -> None:
    if report.status == "paused":
        last = report.stages[-1]
        counted = "questions" if recipe.stages[last.name].samples else "tokens"
        display.say(
            f"paused: stage {last.name} is saved after step {last.steps}, {last.tokens:,} {counted}; the same"
            " command without --stop-at goes on"
        )
        return
    if all(stage.status == "unchanged" for stage in report.stages):
        display.say(f"nothing to do: every stage of {folder.path} is done and unchanged")
    else:
        display.say(f"done in {duration(seconds)}: {folder.path / 'report.html'}")
    run = shlex.quote(str(folder.path))
    display.say("next:")
    writing = [stage.name for stage in report.stages if recipe.stages[stage.name].objective != "reward"]
    if not writing:
        display.say(f"  tensorboard --logdir {shlex.quote(str(folder.tensorboard))}      every curve")
        return
    if writing[-1] != report.stages[-1].name:
        run += f" --stage {writing[-1]}"
    if any(stage.reads != "text" for stage in recipe.stages.values()):
        display.say(f"  cupola chat {run}                         talk with it")
    display.say(f'  cupola generate {run} --prompt "The people"   let it speak')
    display.say(f"  cupola eval {run} --text FILE             bits per byte of your own text")
    display.say(f"  tensorboard --logdir {shlex.quote(str(folder.tensorboard))}      every curve")
