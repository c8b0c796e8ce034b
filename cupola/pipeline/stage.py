"""One stage of a run: put its parts together, train, and record what came of it.

Where the weights come from, in this order: the newest verified checkpoint of the stage itself (with the
optimizer's state and the position), the last checkpoint of its parent (what `carry` names of it), the seed.
The parts know nothing of files; saving, evaluating and sampling are given to the loop as callbacks.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cupola import objectives, optim
from cupola.checkpoint import folder as checkpoint
from cupola.checkpoint.names import folder_name
from cupola.data.order import Order, epoch_tokens
from cupola.data.store import TokenStore
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.machine import Elsewhere
from cupola.models import build, lora
from cupola.models.table import trained
from cupola.parallel.device import peak_memory
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.folder import RunFolder, StageFolder, final_checkpoint
from cupola.pipeline.material import material_of
from cupola.pipeline.observing import Observer
from cupola.pipeline.plan import PlannedStage
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.records import DONE
from cupola.recipe import rotary
from cupola.recipe.clock import Clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Recipe, Stage
from cupola.train.compiling import decide_compile
from cupola.train.health import Watch, interval
from cupola.train.loop import Progress, StageResult, StageSetup, train_stage
from cupola.train.memory import held_now
from cupola.train.metrics import cut_back
from cupola.train.pace import Pace
from cupola.train.questions import Questions

Sources = Mapping[str, TokenStore | Questions]


def stage_clock(stage: Stage, sources: Sources) -> Clock:
    """The stage's clock; an epoch ends when the first source has been seen once."""
    lengths = {name: source.length for name, source in sources.items()}
    counted = stage.on_clock()
    return Clock(counted, epoch_tokens(lengths, stage.mixture(lengths), counted.longest_row()))


def stage_order(recipe: Recipe, name: str, stage: Stage, stores: Sources, clock: Clock) -> Order:
    """The stage's data order."""
    return Order.over(recipe.seed, name, stores, clock, stage.mixture(stores))


def pause_position(name: str, clock: Clock, asked: Quantity) -> int:
    """Where a stage pauses, in tokens of the stage.

    Raises:
        InputError: that lies beyond the stage.
    """
    tokens = clock.tokens_of(asked)
    too_many = asked.unit == "steps" and asked.amount > clock.step_count
    if too_many or tokens > max(clock.total, clock.end):
        raise InputError(
            f"--stop-at {asked}: lies beyond stage {name}, which has {clock.total:,} tokens in"
            f" {clock.step_count:,} steps"
        )
    return tokens


def stage_notes(recipe: Recipe, name: str, clock: Clock, order: Order | None) -> list[str]:
    """What a person should hear before a stage starts; without data of its batches and positions only."""
    stage = recipe.stages[name]
    positions = rotary.notes(stage.rope or recipe.model.rope, recipe.model_of(name).rope, stage.longest_row())
    notes = [f"stage {name!r}: {note}" for note in [*clock.notes(), *positions]]
    return notes + (order.notes() if order else [])


class StageRun:
    """The parts of one stage, put together; `train` does the rest."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        prepared: Prepared,
        decisions: Decisions,
        planned: PlannedStage,
        display: Display,
    ) -> None:
        self.folder, self.recipe, self.planned, self.display = folder, recipe, planned, display
        self.prepared, self.decisions = prepared, decisions
        self.files, self.stage = planned.folder, planned.stage
        self.begun, self.others = time.monotonic(), Elsewhere()
        device = torch.device(decisions.device)
        held_now(device)  # so that a stage's peak is its own, as the dry run measures it
        self.pace = Pace(device, decisions.precision)
        self.model = recipe.model_of(planned.name)
        self.module = build(self.model, prepared.vocabulary, recipe.seed, device, scores=self.stage.scores)
        material = material_of(self.stage)
        self.material = material(recipe, prepared, decisions, planned, self.module, display)
        self.clock = stage_clock(self.stage, self.material.sources)
        self.order = stage_order(recipe, planned.name, self.stage, self.material.sources, self.clock)
        self.trained = lora.restrict(self.module, self.stage, planned.name, recipe.seed)
        self.optimizer: optim.AdamW = optim.build(self.module, self.stage.optimizer)
        self.objective = objectives.build(self.stage)
        self.engine = LocalEngine(self.module, decisions.precision, device)

    def train(self, run_seconds: float | None, stop_at: int | None = None) -> StageResult:
        """Train to the end of the stage and record it as done, or to where it pauses.

        Args:
            run_seconds: about how long the stage will take, or None if nobody knows.
            stop_at: pause after the step that reaches this position, in tokens of the stage.

        Raises:
            Interrupted: the user asked to stop; the step under way is finished and saved.
            CupolaError: it can't go on; the last checkpoint is intact.
        """
        self.files.sweep()
        self.material.refer()
        start = self._start()
        for path in (self.files.metrics, self.files.health):
            cut_back(path, start.step)
        # At the end of a stage saving comes first, so what was looked at after it is looked at again.
        seen = start.step - 1 if start.position >= self.clock.end else start.step
        for path in (self.files.evaluations, self.files.samples):
            cut_back(path, seen)
        self.files.begin(name=self.planned.name, key=self.planned.key)
        self._choose_compile(run_seconds)
        event = "stage_resumed" if start.step else "stage_begun"
        self.folder.ledger.append(
            event,
            stage=self.planned.name,
            step=start.step,
            tokens=start.position,
            key=self.planned.key,
            trained=self.trained.count,
            compiled=self.files.facts()["compiled"],
        )
        if not self.stage.samples:  # questions are meant to be asked again
            for warning in self.order.warnings():
                self.display.warn(warning)
            for note in stage_notes(self.recipe, self.planned.name, self.clock, self.order):
                self.display.say(note)
        if (part := self.trained.words()) is not None:
            self.display.say(f"stage {self.planned.name}: {part}")
        result = train_stage(replace(self._setup(start), stop_at=stop_at), self.display)
        if result.paused:
            where = {"step": result.progress.step, "tokens": result.progress.position}
            self.folder.ledger.append("stage_paused", stage=self.planned.name, **where, spent=self._spent())
        else:
            self._finish(result)
        return result

    def _start(self) -> Progress:
        """Put the weights where the stage begins or goes on, and say where that is."""
        own = checkpoint.load_newest(self.files.checkpoints, self._report_ignored)
        damaged = checkpoint.set_aside_newer(self.files.checkpoints, own.path if own else None)
        if own is not None:
            return self._resume(own)
        parent = self.planned.parent
        if damaged:
            origin = "its first step" if parent is None else f"what stage {parent.name} left"
            self.display.warn(
                f"stage {self.planned.name}: has no whole checkpoint; begins again from {origin}"
            )
        loaded = None if parent is None else self._carry_over(parent)
        self.material.begin()
        return Progress(global_step=loaded.facts["global_step"] if loaded else 0)

    def _carry_over(self, parent: StageFolder) -> checkpoint.Checkpoint:
        """Take what `carry` names from the parent; its scalar head only where it is of the same kind."""
        loaded = checkpoint.load(final_checkpoint(parent))
        before = self.recipe.stages.get(parent.name)
        has_head = before is not None and before.scores
        same = before is not None and before.objective == self.stage.objective
        if "weights" in self.stage.carry:
            lora.load(self.module, loaded.weights, with_score=has_head and same)
        if "optimizer" in self.stage.carry:
            self._load_optimizer(loaded)
        carried = " and ".join(self.stage.carry)
        without = ", without its scalar head" if has_head and not same else ""
        self.display.say(f"stage {self.planned.name}: takes {carried} from {parent.name}{without}")
        return loaded

    def _resume(self, loaded: checkpoint.Checkpoint) -> Progress:
        self.order.verify_state(loaded.facts["data"])
        if not lora.holds_adapters(loaded.weights):  # saved at the stage's end
            lora.merge(self.module)
        self.module.load_state_dict(loaded.weights)
        self._load_optimizer(loaded)
        facts = loaded.facts
        self.material.resume(facts)
        self.display.say(f"stage {self.planned.name}: goes on after step {facts['step']}")
        return Progress(facts["step"], facts["tokens"], facts["seconds"], facts["global_step"])

    def _load_optimizer(self, loaded: checkpoint.Checkpoint) -> None:
        try:
            optim.load_optimizer_state(self.optimizer, self.module, loaded.optimizer)
        except ValueError as error:
            raise CupolaError(f"{loaded.path}: {error}") from error

    def _report_ignored(self, text: str) -> None:
        self.display.warn(text)
        self.folder.ledger.append("checkpoint_ignored", stage=self.planned.name, why=text)

    def _choose_compile(self, run_seconds: float | None) -> None:
        """Compile the blocks if the recipe says so, if this stage did before, or if it pays."""
        compiled = self.files.facts().get("compiled")
        undecided = self.recipe.compile == "auto" and compiled is None and run_seconds is not None
        last = self.material.last_microbatch(self.order) if undecided else None
        if last is not None and run_seconds is not None:
            choice = decide_compile(self.engine, self.objective, last, run_seconds)
            if choice.on or choice.cost is not None:
                self.display.say(f"torch.compile {'on' if choice.on else 'off'}: {choice.reason}")
            compiled = choice.on
        elif self.recipe.compile == "on" or (self.recipe.compile == "auto" and compiled):
            self.engine.compile()
            compiled = True
        self.files.record(compiled=bool(compiled))

    def _setup(self, start: Progress) -> StageSetup:
        model, vocabulary = self.model, self.prepared.vocabulary
        self.observer = Observer(
            self.files,
            self.recipe.evaluate,
            self.prepared,
            self.module,
            self.stage,
            self.material.judge(self.objective),
            self.decisions.precision,
            self.recipe.seed,
            self.display,
        )
        return StageSetup(
            name=self.planned.name,
            clock=self.clock,
            engine=self.engine,
            optimizer=self.optimizer,
            objective=self.objective,
            batches=partial(self.material.batches, self.order),
            metrics=self.files.metrics,
            save=self._save,
            save_every=self.recipe.checkpoint.every,
            evaluate=self._evaluate,
            evaluate_every=self.recipe.evaluate.every,
            flops_per_token=lambda length: trained.flops_per_token(model, vocabulary, self.trained, length),
            peak_flops=self.decisions.peak_flops,
            start=start,
            tensorboard=self.folder.tensorboard,
            health=self._watch(),
            may_be_left=partial(self.material.may_be_left, self.order),
            unit=self.material.unit,
            pace=self.pace,
        )

    def _watch(self) -> Watch | None:
        every = interval(self.recipe.health, self.clock)
        if every is None:
            return None
        parts = (self.engine, self.optimizer, self.objective)
        return Watch(self.files.health, every, self.clock, *parts, self.planned.name, self.display)

    def _save(self, progress: Progress) -> None:
        facts = {
            "stage": self.planned.name,
            "step": progress.step,
            "global_step": progress.global_step,
            "tokens": progress.position,
            "seconds": progress.seconds,
            "vocabulary": self.prepared.vocabulary,
            "tokenizer": self.prepared.tokenizer.fingerprint,
            "data": self.order.state(progress.position),
            **self.material.facts(),
            **({"lora": self.stage.lora.model_dump(mode="json")} if self.stage.lora else {}),
        }
        # What later stages and every reader take is the plain model.
        adapter = lora.merge(self.module) if progress.position >= self.clock.end else None
        state = optim.optimizer_state(self.optimizer, self.module)
        path = checkpoint.save(self.files.checkpoints, self.module.state_dict(), state, facts, adapter)
        checkpoint.retain(self.files.checkpoints, self.recipe.checkpoint.keep, saved=path)
        self.folder.ledger.append(
            "checkpoint",
            stage=self.planned.name,
            step=progress.step,
            tokens=progress.position,
            path=path.name,
        )

    def _evaluate(self, progress: Progress, at_end: bool) -> dict[str, Any]:
        look = self.observer.finish if at_end else self.observer.look
        return look(progress.step, progress.position)

    def _finish(self, result: StageResult) -> None:
        progress = result.progress
        path = self.files.checkpoints / folder_name(progress.step)
        checkpoint.retain(self.files.checkpoints, 1, saved=path)
        facts = {
            "status": DONE,
            "checkpoint": path.name,
            "tokens": progress.position,
            "steps": progress.step,
            "seconds": round(progress.seconds, 3),
            "skipped": result.skipped,
            "final_loss": result.final_loss,
            "heldout_bits_per_byte": result.evaluation["bits_per_byte"],
            "heldout": result.evaluation["sources"],
            "metrics": result.evaluation["metrics"],
        }
        for remark in self.material.remarks(self.files.metrics):
            self.display.warn(remark)
        self.files.record(**facts)
        self.folder.ledger.append("stage_done", stage=self.planned.name, **facts, spent=self._spent())

    def _spent(self) -> dict[str, float]:
        """Of the clock since this start of the stage, of others' cores and the machine's pace meanwhile, and
        of memory at its peak, what came after the last step included."""
        self.pace.probe()
        return {
            "wall_seconds": round(time.monotonic() - self.begun, 3),
            "elsewhere": round(self.others.cores(), 3),
            "pace": round(self.pace.mean, 6),
            "memory_bytes": peak_memory(self.engine.device),
        }
