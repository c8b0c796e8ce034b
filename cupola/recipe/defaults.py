"""What a stage leaves out: taken over from the stage before it, or a default.

Sequence length, batch and optimizer pass on to the next stage of the same objective; a schedule passes on
its last value, since a ramp is climbed once. The first stage of an objective has the defaults below. Rotary
positions pass on to every stage, since the weights that they go with do.
"""

from cupola.recipe.curve import Piecewise
from cupola.recipe.model import Model
from cupola.recipe.origin import BEGIN
from cupola.recipe.quantity import Quantity
from cupola.recipe.rotary import STRETCHED, Rope, taken_over
from cupola.recipe.schema import Optimizer, Recipe, Stage

SEQUENCE_LENGTH = 1024
"""Tokens in a row, or the model's learned positions where they are fewer."""
BATCH_TOKENS = 65_536
"""Tokens in a step (at least one row). Right for models of some millions of parameters; GPT-3 (Brown et
al. 2020, table 2.1) had 0.5M for 125M parameters and 3.2M for 175B."""


def fill_stages(recipe: Recipe) -> Recipe:
    """The recipe with sequence length, batch and optimizer of every stage stated, and rotary positions from
    the first stage on that states some."""
    before: dict[str, Stage] = {}
    stages = {}
    for name, stage in recipe.stages.items():
        stages[name] = before[stage.objective] = _fill(stage, before.get(stage.objective), recipe.model)
    return recipe.model_copy(update={"stages": _with_rope(recipe, stages)})


def _with_rope(recipe: Recipe, stages: dict[str, Stage]) -> dict[str, Stage]:
    """The stages with the rotary positions that they state, or that their weights were trained with."""
    own = recipe.model.rope
    trained = recipe.context_of(BEGIN) if recipe.begin and own.rope_type not in STRETCHED else 0
    passed_on: dict[str | None, tuple[Rope | None, Rope, int | None]] = {BEGIN: (None, own, trained or None)}
    found = {}
    for name, stage in stages.items():
        stated, rope, unstretched = passed_on.get(recipe.parent_of(name), (None, own, None))
        if "weights" not in stage.carry:
            unstretched = None
        if stage.rope is not None:
            stated = rope = taken_over(stage.rope, rope, unstretched)
        if rope.rope_type not in STRETCHED:
            unstretched = max(unstretched or 0, stage.longest_row())
        passed_on[name] = stated, rope, unstretched
        found[name] = stage.model_copy(update={"rope": stated})
    return found


def _fill(stage: Stage, before: Stage | None, model: Model) -> Stage:
    lengths = stage.sequence_length
    sizes = stage.batch_tokens
    optimizer = stage.optimizer
    if before:
        lengths = lengths or (before.sequence_length.last() if before.sequence_length else None)
        if not stage.samples:
            sizes = sizes or (before.batch_tokens.last() if before.batch_tokens else None)
        optimizer = optimizer or (_settled(before.optimizer) if before.optimizer else None)
    lengths = lengths or _constant(min(SEQUENCE_LENGTH, _learned_positions(model)))
    return stage.model_copy(
        update={
            "sequence_length": lengths,
            "batch_tokens": sizes or _constant(_batch(stage, lengths)),
            "optimizer": optimizer or Optimizer(),
        }
    )


def _batch(stage: Stage, lengths: Piecewise[int]) -> int:
    """On the stage's clock, which counts questions where the stage answers them."""
    if stage.samples:
        return max(1, stage.policy.prompts // stage.policy.updates)
    return max(BATCH_TOKENS, *lengths.values)


def _learned_positions(model: Model) -> int:
    if model.positions == "learned" and model.max_positions:
        return model.max_positions
    return SEQUENCE_LENGTH


def _constant(value: int) -> Piecewise[int]:
    return Piecewise(((Quantity(0, "%"), value),))


def _settled(optimizer: Optimizer) -> Optimizer:
    """With what its schedules come to."""
    stated = {name: getattr(optimizer, name).last() for name in ("weight_decay", "momentum")}
    changing = {name: value for name, value in stated.items() if value != getattr(optimizer, name)}
    return optimizer.model_copy(update=changing)
