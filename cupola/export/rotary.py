"""Rotary positions in `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` (before 2025)."""

from typing import Any

from cupola.export.config import Config
from cupola.recipe.model import Rope

ORIGINAL = "original_max_position_embeddings"
"""The context before stretching; where a file states it outside of the mapping too, that one counts."""
STRETCHED = ("low_freq_factor", "high_freq_factor", ORIGINAL)


def rope_fields(rope: Rope) -> dict[str, Any]:
    """The fields of `config.json`, in both spellings."""
    fields: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta}
    if rope.rope_type != "default":
        fields["factor"] = rope.factor
    if rope.rope_type == "llama3":
        fields |= {name: getattr(rope, name) for name in STRETCHED}
    found = {"rope_parameters": fields, "rope_theta": rope.rope_theta}
    if rope.rope_type != "default":
        found["rope_scaling"] = {key: value for key, value in fields.items() if key != "rope_theta"}
    return found


def read_rope(config: Config, default_theta: float, max_positions: int | None) -> Rope:
    """The rotary positions of a file.

    Args:
        default_theta: the architecture's base of the angles, for files that don't state it.
        max_positions: its context, which is the one before stretching unless that is stated.

    Raises:
        InputError: a kind that Cupola does not compute (yarn, longrope, dynamic, partial rotation, one for
            each kind of layer, ...), or a number that its kind needs is missing.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    value = config.get(name, {})
    if not isinstance(value, dict):
        config.refuse(name, value, "is no mapping")
    if any(isinstance(inner, dict) for inner in value.values()):
        config.refuse(name, value, "is not computed by Cupola (one for all layers is)")
    top: dict[str, Any] = {
        key: config.fields[key] for key in ("rope_theta", "partial_rotary_factor") if key in config.fields
    }
    fields = Config({**top, **value}, f"{config.origin}: {name}")
    fields.only("partial_rotary_factor", 1.0)
    kind = fields.get("rope_type") or fields.get("type") or "default"
    theta = fields.number("rope_theta", default_theta)
    if kind == "default":
        return Rope(rope_theta=theta)
    if kind == "linear":
        return Rope(rope_theta=theta, rope_type="linear", factor=fields.number("factor", None))
    if kind != "llama3":
        fields.refuse("rope_type", kind, "is not computed by Cupola (default, linear, llama3)")
    return Rope(
        rope_theta=theta,
        rope_type="llama3",
        factor=fields.number("factor", None),
        low_freq_factor=fields.number("low_freq_factor", None),
        high_freq_factor=fields.number("high_freq_factor", None),
        original_max_position_embeddings=config.integer(
            ORIGINAL, default=fields.integer(ORIGINAL, default=max_positions)
        ),
    )
