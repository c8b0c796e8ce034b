"""Fail before spending: a few steps of every stage through a fresh model, before the run starts.

Four things are measured and held against what they must be: the first loss is what the objective expects
(ln V for a fresh model) to within 3%; one batch can be learnt by heart; the memory fits; and the time of the
whole stage is reckoned from steps of every size that it will take, and from what it does beside training,
each done once in small. It trains a model of its own and leaves no
trace. Without data the tokens are random, which tests the same but for the corpus.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cupola import objectives
from cupola.data.batch import Microbatch
from cupola.display import Display, size
from cupola.errors import CupolaError
from cupola.machine import Elsewhere
from cupola.models import build
from cupola.parallel.device import peak_memory, total_memory
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.beside import (
    OwnAnswers,
    Reading,
    checkpoint_seconds,
    samples_seconds,
    weights_beside,
)
from cupola.pipeline.course import course_of
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.rehearsing import Rehearsal, Subject, random_rows, steps_of
from cupola.pipeline.stage import Sources, stage_clock, stage_notes, stage_order
from cupola.plan.own import Phase, StagePlan
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Recipe, Stage
from cupola.storage import digest
from cupola.train.memory import held_now
from cupola.train.pace import Pace
from cupola.train.questions import Questions

TOLERANCE = 0.03
USUAL_QUESTION = 16
"""Tokens of a question, where there is no data."""
OVERFIT_STEPS = 60
OVERFIT_SHARE = 0.6
OVERFIT_TOKENS = 256
OVERFIT_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class StageCheck:
    """What a dry run of one stage measured; memory in bytes, time in seconds for the whole stage."""

    name: str
    first_loss: float
    expected_loss: float | None
    peak_bytes: int
    seconds: float
    plan: dict[str, Any]
    """As of `plan.own.StagePlan`."""
    epochs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """What `cupola check` reports."""

    stages: list[StageCheck]
    order_fingerprint: str | None
    notes: list[str]
    """What a person should hear: sources seen more than once, raised weights, batches of uneven size."""
    warnings: list[str]
    """What a person should be warned of: sources seen too often."""

    def as_json(self) -> dict[str, Any]:
        """The object that `cupola check --json` prints."""
        return asdict(self)

    def without_plans(self) -> dict[str, Any]:
        """The same without the stages' plans, which are recorded by themselves."""
        facts = self.as_json()
        for stage in facts["stages"]:
            del stage["plan"]
        return facts


def preflight(
    recipe: Recipe,
    prepared: Prepared | None,
    decisions: Decisions,
    display: Display,
    scratch: Path | None = None,
) -> Check:
    """Dry-run every stage of a recipe.

    Args:
        prepared: the stores, or None for random tokens.
        scratch: a folder that isn't there, in which to try what a checkpoint takes; None: that is not timed.

    Raises:
        CupolaError: a first loss that is off, a batch that can't be learnt, memory that does not suffice;
            names the stage and what to look at.
    """
    checks, fingerprints, notes, warnings = [], [], [], []
    pace = Pace(torch.device(decisions.device), decisions.precision)
    with display.task("checking the recipe", total=len(recipe.stages) + 1, unit="stages") as task:
        for name, stage in recipe.stages.items():
            task.note(name)
            subject, sources = _subject(recipe, name, stage, prepared, decisions)
            order = subject.order
            checks.append(_check_stage(subject, sources, scratch, pace))
            if not stage.samples:  # questions are meant to be asked again
                notes += stage_notes(recipe, name, subject.clock, order)
                warnings += order.warnings() if order else []
            if order is not None:
                fingerprints.append(order.fingerprint())
            task.advance()
        task.note("one batch by heart")
        _overfit(recipe, decisions, checks[0])
        task.advance()
    held = held_now(torch.device(decisions.device))
    checks = [_settled(check, held, pace) for check in checks]
    return Check(checks, digest(fingerprints) if prepared else None, notes, warnings)


def _check_stage(subject: Subject, sources: Sources, scratch: Path | None, pace: Pace) -> StageCheck:
    name, stage, others = subject.name, subject.stage, Elsewhere()
    rehearsal = Rehearsal(subject, pace)
    reading, own = None, None
    if stage.samples:
        own = _train_on_answers(rehearsal, sources)
        reading = Reading(rehearsal)
        phases = _phases_of_answers(rehearsal, own, reading)
    else:
        steps, microbatches = steps_of(subject)
        rehearsal.train(microbatches, max(sum(step.values()) for step in steps.values()))
        phases = rehearsal.phases(steps)
    expected = rehearsal.objective.expected_first_loss(subject.decisions.vocabulary)
    _judge_loss(name, rehearsal.first_loss, expected)
    parts = _parts(rehearsal, reading, own, scratch) if subject.prepared else {}
    peak = peak_memory(rehearsal.device) + weights_beside(rehearsal.module, stage)
    _judge_memory(name, peak, rehearsal.device)
    peak -= rehearsal.base
    notes = ["answers are taken at their full length"] if own else []
    if subject.recipe.compile == "on":
        notes.append("torch.compile is not reckoned with")
    plan = StagePlan(peak, phases, rehearsal.warmup, parts, others.cores(), tuple(notes))
    epochs = subject.order.epochs_of(subject.clock.end) if subject.order else {}
    return StageCheck(name, rehearsal.first_loss, expected, peak, plan.total, plan.as_json(), epochs)


def _settled(check: StageCheck, held: int, pace: Pace) -> StageCheck:
    """A check as it stands when the dry run is over: its memory on top of what the process then holds, its
    seconds at the pace that the machine had over the whole dry run."""
    plan = StagePlan.from_json(check.plan)
    assert plan is not None
    peak = check.peak_bytes + held
    plan = replace(plan.slower(pace.mean / pace.unit), memory_bytes=peak, pace=pace.mean)
    return replace(check, peak_bytes=peak, seconds=plan.total, plan=plan.as_json())


def _train_on_answers(rehearsal: Rehearsal, sources: Sources) -> OwnAnswers:
    """Time what a stage learns of its own answers."""
    stage, subject = rehearsal.subject.stage, rehearsal.subject
    asked = [
        len(question.ids)
        for source in sources.values()
        if isinstance(source, Questions)
        for question in source.questions
    ]
    length = stage.longest_row()
    rehearsal.train(_rows_of_answers(subject, length), at_once=1)
    return OwnAnswers(rehearsal, sum(asked) / len(asked) if asked else USUAL_QUESTION)


def _rows_of_answers(subject: Subject, length: int) -> dict[tuple[int, int], Microbatch]:
    rows = max(1, subject.decisions.microbatch_tokens // length)
    return {(rows, length): random_rows(subject, rows, length)}


def _phases_of_answers(rehearsal: Rehearsal, own: OwnAnswers, reading: Reading) -> tuple[Phase, ...]:
    [(at_once, length)] = rehearsal.timed
    phases = []
    for (_, questions), count in rehearsal.subject.course.steps.items():
        full, rest = divmod(own.rows(questions), at_once)
        step = {(at_once, length): full} | ({(rest, length): 1} if rest else {})
        seconds = rehearsal.seconds(step) + own.seconds(questions, reading)
        phases.append(Phase(1, questions, count, seconds))
    return tuple(phases)


def _parts(
    rehearsal: Rehearsal, reading: Reading | None, own: OwnAnswers | None, scratch: Path | None
) -> dict[str, float]:
    """Seconds of what the stage does beside training."""
    subject, course = rehearsal.subject, rehearsal.subject.course
    assert subject.prepared is not None
    reading = reading or Reading(rehearsal)
    looking = reading.rate * (course.evaluations * reading.tokens(False) + reading.tokens(True))
    if own is not None:
        looking += course.evaluations * own.judged(subject.prepared, False)
        looking += own.judged(subject.prepared, True)
    saving, loading = (0.0, 0.0) if scratch is None else checkpoint_seconds(rehearsal, scratch)
    has_parent = subject.recipe.parent_of(subject.name) is not None
    return {
        "evaluation": looking,
        "samples": (course.evaluations + 1) * samples_seconds(rehearsal),
        "checkpoints": course.saves * saving,
        "health": course.looks * rehearsal.look,
        "reference": reading.referred() * reading.rate,
        "start": rehearsal.opening + (loading if has_parent else 0.0),
    }


def _judge_loss(name: str, loss: float, expected: float | None) -> None:
    if expected is not None and not abs(loss - expected) <= TOLERANCE * expected:
        raise CupolaError(
            f"check {name}: the first loss is {loss:.3f}, but a fresh model's is {expected:.3f} to within"
            f" {TOLERANCE:.0%}; model.init_std is the usual cause"
        )


def _judge_memory(name: str, peak: int, device: torch.device) -> None:
    if peak > total_memory(device):
        raise CupolaError(
            f"check {name}: draws {size(peak)} of memory, {device} has {size(total_memory(device))};"
            " lower scale.microbatch_tokens or the model's size"
        )


def _subject(
    recipe: Recipe, name: str, stage: Stage, prepared: Prepared | None, decisions: Decisions
) -> tuple[Subject, Sources]:
    """A stage, and what its data order draws from."""
    sources: Sources = {} if prepared is None else prepared.train_sources(stage)
    if prepared is None:
        clock, order = Clock(stage.on_clock(), epoch_tokens=10**9), None
    else:
        clock = stage_clock(stage, sources)
        order = stage_order(recipe, name, stage, sources, clock)
    course = course_of(recipe, stage, clock)
    return Subject(recipe, name, stage, clock, course, order, prepared, decisions), sources


def _overfit(recipe: Recipe, decisions: Decisions, check: StageCheck) -> None:
    """One small batch must be learnt by heart: gradients reach every part of the model.

    Random tokens will do: what is tested is the model and its backward pass, not the text.
    """
    device = torch.device(decisions.device)
    name, stage = next(iter(recipe.stages.items()))
    module = build(recipe.model_of(name), decisions.vocabulary, recipe.seed, device)
    engine = LocalEngine(module, decisions.precision, device)
    objective = objectives.NextToken()
    optimizer = torch.optim.AdamW(module.parameters(), lr=OVERFIT_LEARNING_RATE, weight_decay=0.0)
    assert stage.sequence_length is not None
    length = min(OVERFIT_TOKENS // 2, min(stage.sequence_length.values))
    generator = torch.Generator().manual_seed(recipe.seed)
    tokens = torch.randint(decisions.vocabulary, (OVERFIT_TOKENS // length, length + 1), generator=generator)
    microbatch = Microbatch.of_rows(tokens).to(device)
    loss = first = math.inf
    for step in range(OVERFIT_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = float(engine.forward_backward([microbatch], objective, microbatch.targets.numel()).loss)
        first = loss if step == 0 else first
        if loss <= OVERFIT_SHARE * first:
            return
        optimizer.step()
    raise CupolaError(
        f"check {check.name}: one batch could not be learnt by heart (in {OVERFIT_STEPS} steps the loss"
        f" fell from {first:.3f} to {loss:.3f} only); the model's settings keep gradients from flowing"
    )
