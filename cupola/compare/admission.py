"""What a sweep may be over: a setting of the training, with trials that are comparable at every rung.

Refused before anything runs: what changes the yardstick instead of the model (seed, evaluations, the held-out
text, and the tokenizer, by whose tokens the choice of that text is measured), and trials of unequal length,
since a share of a longer stage is more training.
"""

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cupola.compare.variants import Planned
from cupola.errors import InputError
from cupola.recipe.clock import Clock
from cupola.recipe.curve import Curve
from cupola.recipe.schema import Stage
from cupola.recipe.structure import kind_at

NO_TRAINING: Mapping[str, str] = {
    "seed": "a seed is chance and no setting; `cupola compare --seeds 3` shows how much it matters",
    "scale": "it spreads the training and leaves what is learnt as it is",
    "checkpoint": "it says what is saved and not what is learnt",
    "evaluate": "it says how trials are judged and not what they learn",
    "health": "it says what is looked at and not what is learnt",
    "corpora": "it changes the held-out text, by which trials are judged",
    "tokenizer": "it changes the choice of held-out text, by which trials are judged before the end;"
    " `cupola compare --vary` judges by all of it",
}
"""Parts of a recipe that are not swept -> why."""


def refuse_what_is_no_training(key: str) -> None:
    """Refuse a setting on which what is learnt does not depend, or with which the yardstick changes.

    Raises:
        InputError: says why.
    """
    if why := NO_TRAINING.get(key.partition(".")[0]):
        raise InputError(f"--over {key}: is not swept: {why}")


def refuse_later_stages(key: str, planned: Planned, stage: str) -> None:
    """Refuse a setting of a stage that comes after the one by which trials are judged.

    Raises:
        InputError: names both.
    """
    words, names = key.split("."), list(planned.recipe.stages)
    own = words[1] if words[0] == "stages" and len(words) > 1 else stage
    if own in names and names.index(own) > names.index(stage):
        raise InputError(f"--over {key}: has no effect on stage {stage}, which comes before {own}")


def refuse_unequal_lengths(key: str, planned: Sequence[Planned], stage: str) -> None:
    """Refuse trials that train any stage up to `stage` for different lengths.

    Raises:
        InputError: names the stage and why they differ.
    """
    names = list(planned[0].recipe.stages)
    for name in names[: names.index(stage) + 1]:
        stages = [trial.recipe.stages[name] for trial in planned]
        lengths = [_length(each) for each in stages]
        if len(set(lengths)) == 1:
            continue
        horizons = {each.tokens for each in stages}
        horizon = next(iter(horizons))
        assert horizon is not None
        if len(horizons) > 1:
            why = f"it sets how long stage {name} trains"
        elif horizon.unit == "steps":
            why = (
                f"the horizon of stage {name} is {horizon}, so a larger batch trains on more tokens; give it"
                f" in tokens (--set stages.{name}.tokens='20M tokens')"
            )
        else:
            why = f"the horizon of stage {name} is {horizon}, and an epoch depends on the mixture"
        counted = [length for length in lengths if isinstance(length, int)]
        spread = f" ({min(counted):,} to {max(counted):,} tokens)" if counted else ""
        raise InputError(
            f"--over {key}: the trials are not equally long{spread}, so what is best would be what trains"
            f" longest: {why}"
        )


def _length(stage: Stage) -> int | str:
    """Tokens of a stage; where it counts in epochs, everything on which that depends."""
    if stage.tokens is None or stage.tokens.unit == "epochs":
        return f"{stage.tokens} of {stage.data.dump()}"
    return Clock(stage).total


def refuse_late_rungs(planned: Sequence[Planned], stage: str, shares: Sequence[float]) -> None:
    """Refuse a stage of so few steps that a rung would be its end: there all held-out text is read.

    Raises:
        InputError: names the trial and its number of steps.
    """
    for trial in planned:
        clock = Clock(trial.recipe.stages[stage])
        for share in shares[:-1]:
            if rung_end(clock, share) >= clock.end:
                raise InputError(
                    f"variant {trial.variant}: stage {stage} has too few steps ({clock.step_count}) to"
                    f" compare trials at {share:.0%} of it; say a longer stage or a smaller batch"
                )


def rung_position(clock: Clock, share: float) -> int:
    """Where a rung lies, in whole tokens of a trial: the first step that ends there or later reaches it.

    Both the pause and the figure go by it.
    """
    return max(1, clock.total // round(1 / share))


def rung_end(clock: Clock, share: float) -> int:
    """Where the step ends that reaches a rung."""
    return clock.next_boundary(rung_position(clock, share) - 1)


def takes_real_numbers(key: str) -> bool:
    """Whether the schema has a real number under a key; False where it has none, or no such key."""
    *above, name = key.split(".")
    kind = kind_at((*above, name))
    if (shorthand := getattr(kind, "shorthand", None)) is not None:
        above, name = [*above, name], shorthand
    block = kind_at(above)
    while block is None and above:  # a key in what is replaced whole, such as the weight of a source
        *above, name = above
        block = kind_at(above)
    field = getattr(block, "model_fields", {}).get(name)
    return field is not None and not {float, Curve}.isdisjoint(_leaves(field.annotation))


def _leaves(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    if not inner:
        return {annotation}
    return {leaf for part in inner for leaf in _leaves(part)}
