"""`model.parametrisation`: which settings a model has where those of a smaller one, its base, were tuned.

A learning rate that is right for one width is too large for a wider model. Under a maximal update
parametrisation (Yang et al. 2022, Tensor Programs V, arXiv 2203.03466) initial deviations, learning rates and
multipliers depend on the ratio to a base model such that all activations, and what one update changes of
them, stay as large as they are there: what is tuned on the base serves every width. Beside the width, the
depth:

    kind        width  residual branches times  learning rate in blocks times
    standard    -      1                        1
    mup         yes    1                        1                    Yang et al. 2022
    depth_mup   yes    (base / layers)^1/2      (base / layers)^1/2  Yang et al. 2023, arXiv 2310.02244
    completep   yes    base / layers            1                    Dey et al. 2025, arXiv 2505.01618

Here stand the settings, the base model, and the multipliers of the forward pass; factors of parameters stand
in `cupola.models.table.transfer`. A model that is its own base has the numbers of `standard`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from cupola.recipe.strict import Strict

if TYPE_CHECKING:
    from cupola.recipe.model import Model

DEPTH_EXPONENTS = {"depth_mup": 0.5, "completep": 1.0}
"""Residual branches are multiplied by (base / layers) to this power."""


class Parametrisation(Strict):
    """How initial weights, learning rates and multipliers depend on width and depth."""

    kind: Literal["standard", "mup", "depth_mup", "completep"] = "standard"
    """mup transfers settings over widths; depth_mup and completep over depths as well."""
    base_width: int | None = Field(default=None, ge=1)
    """Width of the base model, for which the settings were tuned; its heads, feed-forward layer and experts
    are smaller in proportion."""
    base_layers: int | None = Field(default=None, ge=1)
    """Layers of the base model, for depth_mup and completep."""
    base_head_width: int | None = Field(default=None, ge=1)
    """Width of the base model's heads; by default as here, so that it has fewer of them."""
    base_key_value_heads: int | None = Field(default=None, ge=1)
    """Key/value heads of the base model; by default in proportion to its heads."""


class Multipliers(NamedTuple):
    """The constants of the forward pass as they are in force."""

    embedding: float
    residual: float
    attention: float | None
    """None: head_width^-1/2."""
    logits: float
    """Logits are divided by it."""


def width_ratio(model: "Model") -> float:
    """Width over the base's; 1 for standard."""
    base = model.parametrisation.base_width
    return model.width / base if base else 1.0


def depth_ratio(model: "Model") -> float:
    """Layers over the base's; 1 where the kind does not look at depth."""
    settings = model.parametrisation
    if settings.kind not in DEPTH_EXPONENTS or not settings.base_layers:
        return 1.0
    return model.layers / settings.base_layers


def depth_exponent(model: "Model") -> float:
    """See `DEPTH_EXPONENTS`; of no consequence where `depth_ratio` is 1."""
    return DEPTH_EXPONENTS.get(model.parametrisation.kind, 1.0)


def multipliers(model: "Model") -> Multipliers:
    """The recipe's multipliers are the base model's; these are the model's own."""
    residual = model.residual_multiplier
    if (depth := depth_ratio(model)) != 1:
        residual /= depth ** depth_exponent(model)
    logits = model.logits_scaling
    if (width := width_ratio(model)) != 1:
        logits *= width
    return Multipliers(model.embedding_multiplier, residual, _attention(model), logits)


def _attention(model: "Model") -> float | None:
    """1 / head_width (Yang et al. 2022, definition 4.1), as large as the base's there."""
    own, base = model.sizes().head_width, model.parametrisation.base_head_width
    if not base or base == own:
        return model.attention_multiplier
    return (model.attention_multiplier or base**-0.5) * base / own


def folded(model: "Model") -> "Model":
    """The model of parametrisation standard that computes the same function of the same weights."""
    if model.parametrisation.kind == "standard":
        return model
    in_force = multipliers(model)
    return model.model_copy(
        update={
            "parametrisation": Parametrisation(),
            "embedding_multiplier": in_force.embedding,
            "residual_multiplier": in_force.residual,
            "attention_multiplier": in_force.attention,
            "logits_scaling": in_force.logits,
        }
    )


def base_model(model: "Model") -> "Model | None":
    """The base of a model, with its layers: what shapes are compared with. None for standard.

    Sizes that the recipe states (feed-forward layer, experts) are scaled and rounded; ranks that it states,
    states of state spaces and numbers of experts are those of the model.
    """
    settings, width = model.parametrisation, model.parametrisation.base_width
    if settings.kind == "standard" or width is None:
        return None
    ratio = width / model.width
    update: dict[str, Any] = {"width": width, "parametrisation": Parametrisation()}
    if model.feedforward is not None:
        update["feedforward"] = max(1, round(model.feedforward * ratio))
    if model.experts is not None:
        scaled = {name: round(getattr(model.experts, name) * ratio) for name in ("width", "shared")}
        scaled["width"] = max(1, scaled["width"])
        update["experts"] = model.experts.model_copy(update=scaled)
    if model.heads is not None:
        update |= _base_heads(model)
    return model.model_copy(update=update)


def _base_heads(model: "Model") -> dict[str, int]:
    """Heads, key/value heads and head width; heads are fractions rounded, which `faults` refuses."""
    sizes, settings = model.sizes(), model.parametrisation
    assert settings.base_width is not None
    head_width = settings.base_head_width or sizes.head_width
    share = settings.base_width / model.width * sizes.head_width / head_width
    return {
        "heads": max(1, round(sizes.heads * share)),
        "key_value_heads": settings.base_key_value_heads or max(1, round(sizes.key_value_heads * share)),
        "head_width": head_width,
    }


def faults(model: "Model") -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it) of a model's parametrisation."""
    settings = model.parametrisation
    if settings.kind == "standard":
        for key in ("base_width", "base_layers", "base_head_width", "base_key_value_heads"):
            if getattr(settings, key) is not None:
                yield key, "has no effect on kind standard; take mup or completep, or remove it"
        return
    if settings.base_width is None:
        yield "base_width", f"kind {settings.kind} needs the width for which the settings were tuned"
    if settings.kind in DEPTH_EXPONENTS and settings.base_layers is None:
        yield "base_layers", f"kind {settings.kind} needs the layers for which the settings were tuned"
    if settings.kind == "mup" and settings.base_layers is not None:
        yield "base_layers", "kind mup does not look at depth; take completep, or remove it"
    if not model.heads:
        for key in ("base_head_width", "base_key_value_heads"):
            if getattr(settings, key) is not None:
                yield key, "has no effect without attention; remove it"
    elif settings.base_width is not None:
        yield from _head_faults(model, settings.base_width)


def _head_faults(model: "Model", width: int) -> Iterator[tuple[str, str]]:
    sizes, settings = model.sizes(), model.parametrisation
    if not sizes.head_width:  # width and heads are refused already
        return
    head_width = settings.base_head_width or sizes.head_width
    if width * sizes.heads * sizes.head_width % (model.width * head_width):
        yield (
            "base_width",
            f"{width} is no whole number of heads of {head_width}; take another width, or base_head_width",
        )
    elif settings.base_key_value_heads is None:
        whole = width * sizes.key_value_heads * sizes.head_width
        if whole % (model.width * head_width):
            yield (
                "base_key_value_heads",
                f"{sizes.key_value_heads} key/value heads are no whole number at width {width};"
                " state how many the base model has",
            )
