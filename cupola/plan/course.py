"""What a stage takes, step by step, before anyone asks how long: batches, rows, evaluations, checkpoints.

The stage's own clock says it all, as it does for the trainer. A stage that learns from its own answers
counts questions; here these are the tokens of the answers, each at its greatest length.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cupola.errors import InputError
from cupola.plan.layout import Layout
from cupola.plan.stock import Repeated, Stock, repetitions
from cupola.recipe.clock import Clock, Stretch
from cupola.recipe.curve import Piecewise
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import LearningRate, Recipe, Stage

GPT3_BATCH, GPT3_SIZE, GPT3_EXPONENT = 0.5e6, 125e6, 0.256
"""Tokens of a step at a size, and the power by which they grow: 0.5M at 125M parameters, 3.2M at 175B (Brown
et al. 2020, table 2.1)."""
AMPLE_EPOCH = 10**15
"""Tokens of an epoch where the horizon doesn't ask."""


class UnknownHorizon(InputError):
    """A stage's horizon is in epochs of a corpus whose size nobody knows yet."""


@dataclass(frozen=True)
class Answers:
    """What a stage that samples asks its model to write.

    Attributes:
        rounds: of answers, each of which feeds `policy.updates` steps.
        at_once: answers of a round.
        length: tokens of one, at most.
    """

    rounds: int
    at_once: int
    length: int


@dataclass(frozen=True)
class Course:
    """See the module's docstring.

    Attributes:
        stretches: all steps, in stretches of one batch and one row length.
        evaluations, saves: how many; the end is among them.
        evaluation_tokens: that one evaluation reads.
        forwards: passes without a backward one that every token takes beside training's.
        answers: what is sampled; None where the stage reads.
        repeated: how often it reads each source of which something is known.
    """

    stretches: tuple[Stretch, ...]
    evaluations: int = 0
    saves: int = 1
    evaluation_tokens: int = 0
    forwards: int = 0
    answers: Answers | None = None
    repeated: tuple[Repeated, ...] = ()

    @property
    def steps(self) -> int:
        return sum(stretch.steps for stretch in self.stretches)

    @property
    def tokens(self) -> int:
        """That are trained on."""
        return self.stretches[-1].end

    @property
    def largest(self) -> Stretch:
        """The last of those with the longest rows, and among them the largest batch."""
        return max(reversed(self.stretches), key=lambda one: (one.sequence_length, one.batch_tokens))


def usual_batch(parameters: float, sequence_length: int, layout: Layout) -> int:
    """Rows of a step, where nobody says: tokens that grow with the model as GPT-3's did, to a power of two in
    rows; at least so many that each pipeline stage has a microbatch, and what the layout can share out.

    Args:
        parameters: that a token meets.
    """
    tokens = GPT3_BATCH * (parameters / GPT3_SIZE) ** GPT3_EXPONENT
    rows = 2 ** max(0, round(math.log2(tokens / sequence_length)))
    unit = layout.data * layout.rows
    whole = unit * (layout.pipeline if layout.schedule == "interleaved" else 1)
    return -(-max(rows, unit * layout.pipeline) // whole) * whole


def times_due(clock: Clock, interval: Quantity) -> int:
    """How many steps but the last something is due after, by the clock's own rule (`Clock.due`)."""
    if interval.unit == "steps":
        return (clock.step_count - 1) // int(interval.amount)
    every, found = max(1, clock.tokens_of(interval)), 0
    for stretch in clock.stretches():
        last = stretch.step + stretch.steps == clock.step_count
        steps = stretch.steps - last
        end = clock.boundary(stretch.step + steps)
        # A step is due once, however many multiples it reaches.
        found += min(steps, end // every - stretch.start // every)
    return found


def of_stage(
    recipe: Recipe,
    name: str,
    known: Mapping[str, Stock],
    sequence_length: int | None = None,
    batch_tokens: int | None = None,
    tokens: int | None = None,
) -> Course:
    """Of a stage of a recipe.

    Args:
        known: how much there is of its sources.
        sequence_length, batch_tokens, tokens: in place of the recipe's schedules and horizon.

    Raises:
        UnknownHorizon: it is in epochs of what isn't known.
        InputError: the clock makes no sense.
    """
    stage = _stated(recipe.stages[name], sequence_length, batch_tokens, tokens)
    clock = _clock(name, stage, known)
    k = stage.policy.completions * stage.policy.max_completion_length if stage.samples else 1
    row = stage.longest_row()
    stretches = tuple(
        Stretch(
            one.step,
            one.steps,
            one.start * k,
            one.end * k,
            one.batch_tokens * k,
            row if stage.samples else one.sequence_length,
        )
        for one in clock.stretches()
    )
    updates = stage.policy.updates if stage.samples else 1
    answers = None
    if stage.samples:
        at_once = stage.policy.prompts * stage.policy.completions
        answers = Answers(math.ceil(clock.step_count / updates), at_once, stage.policy.max_completion_length)
    # The reference's, and where the policy moves between answer and step, or a critic looks ahead, its own.
    before = stage.samples and (updates > 1 or stage.objective == "ppo")
    forwards = int(stage.refers or stage.refers_by_answers) + int(before)
    text = sum(recipe.corpora[source].holds() == "text" for source in recipe.sources())
    judged = 0 if stage.reads == "text" else len(stage.sources())
    return Course(
        stretches,
        times_due(clock, recipe.evaluate.every) + 1,
        times_due(clock, recipe.checkpoint.every) + 1,
        recipe.evaluate.tokens * (text + judged),
        forwards,
        answers,
        () if stage.samples else tuple(repetitions(stage, clock.end, known)),
    )


def of_model(tokens: int, batch_tokens: int, sequence_length: int) -> Course:
    """Of a shipped model: so many tokens in steps of one size; saved at the end, not evaluated.

    Raises:
        InputError: fewer tokens than a row.
    """
    if tokens < sequence_length:
        raise InputError(f"--tokens {tokens}: less than one row of {sequence_length} tokens")
    stage = Stage(data=Piecewise(((Quantity(0, "%"), {"text": 1.0}),)), learning_rate=LearningRate(peak=1e-4))
    clock = Clock(_stated(stage, sequence_length, batch_tokens, tokens))
    return Course(tuple(clock.stretches()))


def _stated(stage: Stage, length: int | None, batch: int | None, tokens: int | None) -> Stage:
    """The stage with what is stated in place of its schedules, which then hold from beginning to end."""
    changed: dict[str, object] = {}
    if length is not None:
        changed["sequence_length"] = _constant(length)
    if batch is not None and not stage.samples:
        changed["batch_tokens"] = _constant(max(batch, length or 1))
    if tokens is not None:
        changed["tokens"] = Quantity(tokens, "tokens")
    return stage.model_copy(update=changed)


def _constant(value: int) -> Piecewise[int]:
    return Piecewise(((Quantity(0, "%"), value),))


def _clock(name: str, stage: Stage, known: Mapping[str, Stock]) -> Clock:
    epoch = AMPLE_EPOCH
    assert stage.tokens is not None
    if stage.tokens.unit == "epochs":
        if stage.samples or any(source not in known for source in stage.sources()):
            raise UnknownHorizon(
                f"{name}: its horizon is in epochs of a corpus whose size is not known before a first run;"
                f" --stage {name} --tokens states it"
            )
        from cupola.data.order import epoch_tokens

        lengths = {source: known[source].tokens for source in stage.sources()}
        epoch = epoch_tokens(lengths, stage.data, stage.longest_row())
    try:
        return Clock(stage.on_clock(), epoch)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
