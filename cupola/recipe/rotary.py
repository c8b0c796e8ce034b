"""Rotary positions: their settings, what a stage takes over of them, what is wrong with them.

A model that was trained on short rows has not seen the angles of far positions. A longer context is reached
by making angles smaller, all of them or the slow ones, and a stage of training on long rows; the weights stay
what they are, since rotary positions have none.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cupola.recipe.strict import Strict

STRETCHED = ("linear", "dynamic", "yarn", "llama3")
"""The kinds that have a factor."""
ORIGINAL = "original_max_position_embeddings"


class Rope(Strict):
    """Rotary position embedding (Su et al. 2021), with Hugging Face's names."""

    rope_theta: float = Field(default=10000.0, gt=0)
    """The base of the angles; in a stage by default that of the stage before."""
    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3"] = "default"
    """How longer contexts are reached: `default` by the base alone; `linear` divides all angles (Chen et al.
    2023); `yarn` (Peng et al. 2023) and `llama3` the slow ones; `dynamic` raises the base (NTK-aware)."""
    factor: float = Field(default=1.0, ge=1)
    """By how much the context is stretched."""
    original_max_position_embeddings: int | None = Field(default=None, ge=1)
    """The context before stretching; in a stage by default the longest row of the stages before, of those
    that were not stretched."""
    low_freq_factor: float = 1.0
    """llama3 only: angles that turn less often than so in the original context are divided by the factor."""
    high_freq_factor: float = 4.0
    """llama3 only: those that turn more often than so are left alone."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn only: angles that turn more often than so in the original context are left alone."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn only: those that turn less often than so are divided by the factor."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn only: cos and sin times this, so scores times its square; by default 0.1 ln(factor) + 1."""
    mscale: float | None = Field(default=None, gt=0)
    """yarn only, with mscale_all_dim (DeepSeek): the attention factor is 0.1 mscale ln(factor) + 1, divided
    by the same with mscale_all_dim."""
    mscale_all_dim: float | None = Field(default=None, gt=0)
    """yarn only: see mscale."""
    truncate: bool = True
    """yarn only: the pairs of channels where its ramp begins and ends are rounded outward."""

    only: ClassVar[dict[str, tuple[str, ...]]] = {
        "factor": STRETCHED,
        ORIGINAL: STRETCHED,
        "low_freq_factor": ("llama3",),
        "high_freq_factor": ("llama3",),
        "beta_fast": ("yarn",),
        "beta_slow": ("yarn",),
        "attention_factor": ("yarn",),
        "mscale": ("yarn",),
        "mscale_all_dim": ("yarn",),
        "truncate": ("yarn",),
    }
    """The kinds on which a setting has an effect, of those that don't have one on all."""

    @model_serializer(mode="wrap")
    def _as_stated(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Base and factor always, since what a stage leaves out is taken over, or missed."""
        values: dict[str, Any] = {"rope_theta": self.rope_theta, **dump(self)}
        if self.rope_type in STRETCHED:
            values["factor"] = self.factor
        foreign = {key for key, kinds in self.only.items() if kinds == ("yarn",)}
        return values if self.rope_type == "yarn" else {k: v for k, v in values.items() if k not in foreign}

    def at(self, context: int, head_width: int) -> "Rope":
        """What a model with a context of so many tokens is turned by.

        `dynamic` is a base for each length of text: theta up to the original context, and beyond, with d
        channels a head, theta (factor length / original - factor + 1)^(d / (d - 2)). Of a trained model it
        is one base, that of its longest row, for every text and token: if it moved while a text grew, keys
        in a cache would stay turned by another, and a text would depend on what it is batched with.
        """
        original = self.original_max_position_embeddings
        if self.rope_type != "dynamic" or original is None or context <= original:
            return self
        stretch = self.factor * context / original - self.factor + 1
        return Rope(rope_theta=self.rope_theta * stretch ** (head_width / (head_width - 2)))


def taken_over(stated: Rope, before: Rope, unstretched: int | None) -> Rope:
    """What a stage states, with what it leaves to the stages before it.

    Args:
        before: what was in force.
        unstretched: the longest row that the weights have been trained on without stretching, if any.
    """
    found: dict[str, Any] = {}
    if "rope_theta" not in stated.model_fields_set:
        found["rope_theta"] = before.rope_theta
    if stated.rope_type in STRETCHED and stated.original_max_position_embeddings is None:
        found[ORIGINAL] = before.original_max_position_embeddings or unstretched
    return stated.model_copy(update=found)


def faults(rope: Rope, head_width: int) -> Iterator[tuple[str | None, str]]:
    """What is wrong with settings by themselves: the key, or None for all of them, and a line."""
    kind = rope.rope_type
    for key, kinds in Rope.only.items():
        if kind not in kinds and getattr(rope, key) != Rope.model_fields[key].default:
            yield key, f"has no effect without rope_type {' or '.join(kinds)}; remove it"
    if kind not in STRETCHED:
        return
    if "factor" not in rope.model_fields_set:
        yield "factor", f"is missing: by how much {kind} stretches the context, such as 4"
    if kind != "linear" and rope.original_max_position_embeddings is None:
        yield None, f"rope_type {kind} needs {ORIGINAL}, the context before stretching"
    if kind == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
        yield "low_freq_factor", f"must be below high_freq_factor {rope.high_freq_factor}"
    if kind == "dynamic" and head_width <= 2:
        yield "rope_type", f"dynamic needs heads of more than 2 channels, not {head_width}"
    if kind == "yarn":
        yield from _yarn_faults(rope)


def _yarn_faults(rope: Rope) -> Iterator[tuple[str, str]]:
    if rope.rope_theta <= 1:
        yield "rope_theta", f"must be above 1 for yarn, not {rope.rope_theta}"
    if rope.beta_slow > rope.beta_fast:
        yield "beta_slow", f"must not be above beta_fast {rope.beta_fast}"
    for key, other in (("mscale", "mscale_all_dim"), ("mscale_all_dim", "mscale")):
        if getattr(rope, key) is not None and getattr(rope, other) is None:
            yield key, f"has no effect without {other}; add it, or remove this"
        elif getattr(rope, key) is not None and rope.attention_factor is not None:
            yield key, "has no effect beside attention_factor; remove either"


def notes(rope: Rope, settled: Rope, longest: int) -> list[str]:
    """What a person should hear about a stage that is stretched.

    Args:
        rope: what is stated for it.
        settled: what it is trained with (`Rope.at`).
        longest: its longest row.
    """
    if rope.rope_type not in STRETCHED:
        return []
    original, factor = rope.original_max_position_embeddings, rope.factor
    line = f"rotary positions {rope.rope_type}, factor {factor:g}"
    if original:
        line += f" of {original} tokens"
    if settled.rope_theta != rope.rope_theta:
        line += f": rope_theta {rope.rope_theta:g} becomes {settled.rope_theta:g}"
    found = [line]
    if rope.rope_type != "dynamic" and original and longest > factor * original:
        found.append(
            f"rows of {longest} tokens are longer than {original} times the factor {factor:g}: what lies"
            f" beyond is new to the model, and a factor of {math.ceil(longest / original)} reaches it"
        )
    return found
