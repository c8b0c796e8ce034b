"""Rotary positions in `config.json`: `rope_parameters`, or `rope_theta` and `rope_scaling` (before 2025)."""

from typing import Any

from cupola.export.config import Config
from cupola.recipe.model import Model
from cupola.recipe.rotary import ORIGINAL, Rope

CONTEXT = "max_position_embeddings"
"""The context that a file is for; to `dynamic`, the one before stretching."""
YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
STATED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", ORIGINAL, *YARN),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
}
"""What a file says of each kind, beside the base."""


def rope_fields(model: Model) -> dict[str, Any]:
    """The fields of `config.json`, in both spellings, and the context if the model's settings have one."""
    rope = model.rope
    stated = {name: value for name in STATED[rope.rope_type] if (value := getattr(rope, name)) is not None}
    fields: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta, **stated}
    found: dict[str, Any] = {"rope_parameters": fields, "rope_theta": rope.rope_theta}
    if rope.rope_type != "default":
        found["rope_scaling"] = {key: value for key, value in fields.items() if key != "rope_theta"}
    context = rope.original_max_position_embeddings if rope.rope_type == "dynamic" else model.max_positions
    return found if context is None else {**found, CONTEXT: context}


def read_rope(config: Config, default_theta: float, max_positions: int | None) -> Rope:
    """The rotary positions of a file.

    Args:
        default_theta: the architecture's base of the angles, for files that don't state it.
        max_positions: its context, which is the one before stretching unless that is stated.

    Raises:
        InputError: a kind that Cupola does not compute (longrope, partial rotation, one for each kind of
            layer, ...), or a number that its kind needs is missing.
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
    if kind not in list(STATED):
        fields.refuse("rope_type", kind, f"is not computed by Cupola ({', '.join(STATED)})")
    found: dict[str, Any] = {"rope_theta": theta, "rope_type": kind}
    implied = None
    if kind == "dynamic":
        found[ORIGINAL] = max_positions
    elif kind != "linear":
        found[ORIGINAL] = config.integer(ORIGINAL, default=fields.integer(ORIGINAL, default=max_positions))
    if kind == "llama3":
        found |= {name: fields.number(name, None) for name in ("low_freq_factor", "high_freq_factor")}
    elif kind == "yarn":
        found |= _yarn(fields)
        # Without a factor, as in DeepSeek's files, it is what the two contexts say.
        implied = max_positions / found[ORIGINAL] if max_positions else None
    return Rope(factor=fields.number("factor", implied), **found)


def _yarn(fields: Config) -> dict[str, Any]:
    """What only yarn has; as to transformers, a number that is absent or 0 is as by default."""
    names = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    found: dict[str, Any] = {name: value for name in names if (value := fields.number(name, 0.0, zero=True))}
    if fields.get("attention_factor") is not None:
        found["attention_factor"] = fields.number("attention_factor", None)
    if "attention_factor" in found or not {"mscale", "mscale_all_dim"} <= found.keys():
        found = {name: value for name, value in found.items() if not name.startswith("mscale")}
    return {**found, "truncate": fields.flag("truncate", True)}
