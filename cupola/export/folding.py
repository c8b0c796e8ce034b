"""A model of another parametrisation than standard, as published formats hold it.

A parametrisation (`cupola.recipe.parametrisation`) is of no consequence once a model is trained, but for its
multipliers. They go into the weights beside them, which is the same function but for rounding: the logits'
into the last norm, that of residual branches into the maps that write to the residual stream, attention's
into the queries. So a Llama-shaped model stays a Llama. Where the architecture has them as settings anyway
(Granite) they become settings, and no weight changes.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from cupola.display import Display
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import folded

LAST_NORM = re.compile(r"norm\.(weight|bias)")
WRITERS = re.compile(
    r"blocks\.\d+\.(mixer\.output\.(weight|bias)|feedforward\.(shared\.)?down(\.weight|\.bias)?"
    r"|feedforward\.value\.weight)"
)
"""Parameters of the last map of a mixer or feed-forward layer."""


def fold(
    model: Model, state: Mapping[str, Tensor], format_of: Callable[[Model], str | None], display: Display
) -> tuple[Model, dict[str, Tensor]]:
    """The model of parametrisation standard that computes the same, and its weights.

    Args:
        state: the model's state dict; it is not changed.
        format_of: the name of the format that has a place for a model's settings; None: there is none.
    """
    plain = folded(model)
    if plain is model:
        return model, dict(state)
    none = {"logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": None}
    bare = plain.model_copy(update=none)
    home = format_of(bare)
    if home is None or home == format_of(plain):
        display.say(f"parametrisation {model.parametrisation.kind}: written as multipliers")
        return plain, dict(state)
    display.say(f"parametrisation {model.parametrisation.kind}: its multipliers are folded into the weights")
    return bare, _into_weights(plain, state)


def _into_weights(plain: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model without multipliers that computes what this one does."""
    query = re.compile(rf"blocks\.\d+\.mixer\.query{'_norm' if plain.qk_norm else ''}\.(weight|bias)")
    scale = 1.0
    if plain.attention_multiplier is not None:
        scale = plain.attention_multiplier * plain.sizes().head_width ** 0.5
    rules = ((LAST_NORM, 1 / plain.logits_scaling), (WRITERS, plain.residual_multiplier), (query, scale))
    scaled = {}
    for name, tensor in state.items():
        factors = [factor for pattern, factor in rules if factor != 1 and pattern.fullmatch(name)]
        scaled[name] = tensor * factors[0] if factors else tensor
    return scaled
