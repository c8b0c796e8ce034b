"""Fail before spending: one batch of every stage through a fresh model, before the run starts.

Four things are measured and held against what they must be: the first loss is what the objective expects
(ln V for a fresh model) to within 3%; one batch can be learnt by heart; the memory fits; the time is
estimated from real steps at every row length of the stage. It trains a model of its own and leaves no
trace. Without data the tokens are random, which tests the same but for the corpus.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from cupola import objectives, optim
from cupola.data.batch import LEARNT, MISMATCHED, REJECTED, Batch, Microbatch
from cupola.data.loader import Reader
from cupola.data.order import Order
from cupola.display import Display, size
from cupola.errors import CupolaError
from cupola.generate import generate
from cupola.models import build, lora
from cupola.models.stack import LanguageModel
from cupola.parallel.device import autocast, peak_memory, reset_peak_memory, synchronize, total_memory
from cupola.parallel.engine import LocalEngine
from cupola.pipeline.decisions import Decisions
from cupola.pipeline.prepare import Prepared
from cupola.pipeline.stage import stage_clock, stage_notes, stage_order
from cupola.recipe.clock import Clock
from cupola.recipe.schema import Recipe, Stage
from cupola.storage import digest

TOLERANCE = 0.03
SAMPLED_ROWS, SAMPLED_AFTER, SAMPLED_TOKENS = 64, 16, 8
"""Answers, question's tokens and answer's tokens of the measurement of sampling."""
WARM_AFTER = 20.0
"""Seconds of a pass beside which its warming up is nothing, so that it is not made twice."""
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


def preflight(recipe: Recipe, prepared: Prepared | None, decisions: Decisions, display: Display) -> Check:
    """Dry-run every stage of a recipe.

    Args:
        prepared: the stores, or None for random tokens.

    Raises:
        CupolaError: a first loss that is off, a batch that can't be learnt, memory that does not suffice;
            names the stage and what to look at.
    """
    checks, fingerprints, notes, warnings = [], [], [], []
    with display.task("checking the recipe", total=len(recipe.stages) + 1, unit="stages") as task:
        for name, stage in recipe.stages.items():
            task.note(name)
            clock, order = _clock_and_order(recipe, name, stage, prepared)
            checks.append(_check_stage(recipe, name, stage, clock, order, prepared, decisions))
            if not stage.samples:  # questions are meant to be asked again
                notes += stage_notes(recipe, name, clock, order)
                warnings += order.warnings() if order else []
            if order is not None:
                fingerprints.append(order.fingerprint())
            task.advance()
        task.note("one batch by heart")
        _overfit(recipe, decisions, checks[0])
        task.advance()
    return Check(checks, digest(fingerprints) if prepared else None, notes, warnings)


def _check_stage(
    recipe: Recipe,
    name: str,
    stage: Stage,
    clock: Clock,
    order: Order | None,
    prepared: Prepared | None,
    decisions: Decisions,
) -> StageCheck:
    device = torch.device(decisions.device)
    reset_peak_memory(device)
    model = recipe.model_of(name)
    module = build(model, decisions.vocabulary, recipe.seed, device, scores=stage.scores)
    lora.restrict(module, stage, name, recipe.seed)
    optimizer = optim.build(module, stage.optimizer)
    objective = objectives.build(stage, dry_run=True)
    engine = LocalEngine(module, decisions.precision, device)
    microbatches = _first_microbatches(prepared, stage, clock, order, decisions)
    tokens_per_second, losses = {}, []
    for length, microbatch in microbatches.items():
        seconds, loss = _timed_pass(engine, objective, microbatch, device)
        tokens_per_second[length] = microbatch.tokens.numel() / seconds
        losses.append(loss)
    optim.set_values(optimizer, clock.values(0, clock.boundary(1))._replace(learning_rate=0.0))
    optimizer.step()  # makes the state, which SOAP's first step takes longer over than any other
    synchronize(device)
    begun = time.perf_counter()
    optimizer.step()
    synchronize(device)
    step_seconds = time.perf_counter() - begun
    peak = peak_memory(device)
    expected = objective.expected_first_loss(decisions.vocabulary)
    _judge(name, losses[0], expected, peak, device)
    if stage.samples:
        longest = stage.policy.completions * stage.policy.max_completion_length
        each = 1 / tokens_per_second[1] + _sampling_seconds(module, decisions)
        tokens_per_second = {
            1: 1 / (each * longest)
        }  # on the stage's clock: questions, answered at full length
    seconds = _stage_seconds(clock, tokens_per_second, step_seconds)
    epochs = order.epochs_of(clock.end) if order else {}
    return StageCheck(name, losses[0], expected, peak, seconds, epochs)


def _sampling_seconds(module: LanguageModel, decisions: Decisions) -> float:
    """Of one token, many answers at a time."""
    begun = time.perf_counter()
    with autocast(torch.device(decisions.device), decisions.precision):
        generate(module, [[1] * SAMPLED_AFTER] * SAMPLED_ROWS, SAMPLED_TOKENS)
    return (time.perf_counter() - begun) / (SAMPLED_ROWS * SAMPLED_TOKENS)


def _judge(name: str, loss: float, expected: float | None, peak: int, device: torch.device) -> None:
    if expected is not None and not abs(loss - expected) <= TOLERANCE * expected:
        raise CupolaError(
            f"check {name}: the first loss is {loss:.3f}, but a fresh model's is {expected:.3f} to within"
            f" {TOLERANCE:.0%}; model.init_std is the usual cause"
        )
    if peak > total_memory(device):
        raise CupolaError(
            f"check {name}: draws {size(peak)} of memory, {device} has {size(total_memory(device))};"
            " lower scale.microbatch_tokens or the model's size"
        )


def _clock_and_order(
    recipe: Recipe, name: str, stage: Stage, prepared: Prepared | None
) -> tuple[Clock, Order | None]:
    if prepared is None:
        return Clock(stage.on_clock(), epoch_tokens=10**9), None
    stores = prepared.train_sources(stage)
    clock = stage_clock(stage, stores)
    return clock, stage_order(recipe, name, stage, stores, clock)


def _first_microbatches(
    prepared: Prepared | None, stage: Stage, clock: Clock, order: Order | None, decisions: Decisions
) -> dict[int, Microbatch]:
    """One microbatch of each row length that the stage uses, as large as training makes them."""
    found: dict[int, Microbatch] = {}
    for position, boundary in clock.steps():
        length = clock.sequence_length(position)
        if length in found:
            continue
        if order is None or prepared is None or stage.samples:
            row = stage.longest_row() if stage.samples else length
            wanted = decisions.microbatch_tokens if stage.samples else boundary - position
            rows = max(1, min(wanted, decisions.microbatch_tokens) // row)
            generator = torch.Generator().manual_seed(position)
            tokens = torch.randint(1, decisions.vocabulary, (rows, row + 1), generator=generator)
            found[length] = (
                Microbatch.of_rows(tokens) if stage.reads == "text" else _two_answers(tokens, stage)
            )
            continue
        reader = Reader(order, prepared.train_stores(stage), decisions.microbatch_tokens, rank=0, ranks=1)
        found[length] = reader.batch(position, boundary).microbatches[0]
    return found


def _two_answers(tokens: torch.Tensor, stage: Stage) -> Microbatch:
    """Rows of two sequences each, all of which is learnt, with token 0 before and after each; the second
    one is the rejected one of a pair, or another's of rated answers."""
    middle = tokens.shape[1] // 2
    tokens[:, [0, middle, -1]] = 0
    learnt = (tokens != 0).numpy().astype(np.uint8) * LEARNT
    learnt[:, middle:] *= MISMATCHED if stage.reads == "rated" else REJECTED
    return Microbatch.of_rows(tokens, delimiter=0, learnt=learnt)


def _timed_pass(
    engine: LocalEngine, objective: objectives.Objective, microbatch: Microbatch, device: torch.device
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and the loss. The first of two warms up, if it is short."""
    sequences = microbatch.answers.count if microbatch.answers else 0
    batch = Batch(0, 0, [microbatch], {}, int((microbatch.targets >= 0).sum()), sequences)
    for _ in range(2):
        synchronize(device)
        begun = time.perf_counter()
        result = engine.forward_backward([microbatch], objective, objective.normaliser(batch))
        loss = float(result.loss)
        seconds = time.perf_counter() - begun
        if seconds > WARM_AFTER:
            break
    return seconds, loss


def _stage_seconds(clock: Clock, tokens_per_second: dict[int, float], step_seconds: float) -> float:
    seconds = 0.0
    for start, end in clock.steps():
        seconds += (end - start) / tokens_per_second[clock.sequence_length(start)] + step_seconds
    return seconds


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
