"""What is asked of the planner: a stage of a recipe, or a shipped model, as `memory.Run`s on a layout.

A recipe's `scale:` says how it is spread where the caller doesn't; what is left open is one row a
microbatch, all sharded (stage 3) where there is more than one worker to shard over, data-parallel workers
on all devices that the rest leaves. The longest row and the largest batch of a stage count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cupola.errors import InputError
from cupola.models.table import Parameter, trained
from cupola.plan.execution import Execution
from cupola.plan.layout import Layout, faults
from cupola.plan.memory import Run
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer, Recipe

SMALL_VOCABULARY = 8192
"""Of a shipped model that leaves it to the tokenizer."""
USUAL_LENGTH = 2048
"""Tokens of a row, of a shipped model that states no context."""


@dataclass(frozen=True)
class Request:
    """What a stage asks for.

    Attributes:
        name: of the stage; of the model where there is no recipe.
        batch: rows of a step; None where it isn't stated.
        scores, frozen, added, references: as of `memory.Run`.
        notes: what was taken for granted, and what is not counted.
    """

    name: str
    model: Model
    vocabulary: int
    sequence_length: int
    batch: int | None
    optimizer: Optimizer
    scale: Mapping[str, int]
    precision: str = "auto"
    scores: bool = False
    frozen: frozenset[str] = frozenset()
    added: tuple[Parameter, ...] = ()
    references: int = 0
    notes: tuple[str, ...] = ()

    def run(self, layout: Layout, execution: Execution) -> Run:
        """It on a layout."""
        return Run(
            self.model,
            self.vocabulary,
            layout,
            self.sequence_length,
            self.batch,
            self.optimizer,
            execution,
            self.scores,
            self.frozen,
            self.added,
            self.references,
        )

    def faults(self, layout: Layout, devices: int) -> list[str]:
        """What is impossible, one line each."""
        return faults(self.model, self.vocabulary, layout, devices, self.sequence_length, self.batch)


def of_preset(name: str, model: Model, sequence_length: int | None, batch_tokens: int | None) -> Request:
    """A shipped model, trained by AdamW on next tokens."""
    length = sequence_length or model.max_positions or USUAL_LENGTH
    notes = []
    if model.vocabulary is None:
        notes.append(f"the vocabulary is the tokenizer's; {SMALL_VOCABULARY} rows are taken")
    if sequence_length is None and model.max_positions is None:
        notes.append(f"rows of {length} tokens are taken; --sequence-length states others")
    rows = model.rows(SMALL_VOCABULARY)
    batch = _batch(batch_tokens, length)
    return Request(name, _able(model, length), rows, length, batch, Optimizer(), {}, notes=tuple(notes))


def of_stage(
    recipe: Recipe, name: str, sequence_length: int | None = None, batch_tokens: int | None = None
) -> Request:
    """A stage of a recipe.

    Raises:
        InputError: there is none of that name; it freezes what isn't there.
    """
    if name not in recipe.stages:
        raise InputError(f"--stage {name}: there is none of that name; there are {', '.join(recipe.stages)}")
    stage = recipe.stages[name]
    assert stage.optimizer is not None
    model = recipe.model_of(name)
    length = sequence_length or stage.longest_row()
    largest = max(stage.batch_tokens.values) if stage.batch_tokens else None
    notes = []
    if recipe.tokenizer.kind == "file" and model.vocabulary is None:
        notes.append("the tokenizer's file is not read; tokenizer.vocabulary is taken for its size")
    if stage.samples:
        notes.append(f"{name}: the memory that its answers take while they are made is not counted")
    if stage.objective == "ppo":
        notes.append(f"{name}: the critic is not counted")
    batch = None if stage.samples else _batch(batch_tokens or largest, length)
    rows = recipe.rows(recipe.tokenizer.vocabulary)
    try:
        part = trained.of_stage(model, rows, stage)
    except InputError as error:
        raise InputError(f"stages.{name}.{error}") from None
    return Request(
        name,
        _able(model, length),
        rows,
        length,
        batch,
        stage.optimizer,
        _scale(recipe, length),
        recipe.precision,
        stage.scores,
        frozenset(p.name for p in part.frozen),
        part.adapters,
        int(stage.refers),
        tuple(notes),
    )


def _batch(tokens: int | None, length: int) -> int | None:
    return None if tokens is None else max(1, tokens // length)


def _able(model: Model, length: int) -> Model:
    """A learned table of positions that is too short for these rows grows with them."""
    if model.positions == "learned" and model.max_positions is not None and length > model.max_positions:
        return model.model_copy(update={"max_positions": length})
    return model


def _scale(recipe: Recipe, length: int) -> dict[str, int]:
    scale = recipe.scale
    found = {"tensor": scale.tensor, "pipeline": scale.pipeline, "context": scale.context}
    if isinstance(scale.data, int):
        found["data"] = scale.data
    if isinstance(scale.microbatch_tokens, int):
        found["rows"] = max(1, scale.microbatch_tokens // length)
    return found


def layout_of(scale: Mapping[str, int], given: Mapping[str, Any], devices: int) -> Layout:
    """The layout that a recipe's scale and what is given beside it name, on so many devices.

    Args:
        given: settings of `Layout` that were stated; they go before those of the recipe.
    """
    settings: dict[str, Any] = {**scale, **given}
    if settings.get("chunks", 1) > 1:
        settings.setdefault("schedule", "interleaved")
    others = settings.get("tensor", 1) * settings.get("pipeline", 1) * settings.get("context", 1)
    settings.setdefault("data", max(1, devices // max(1, others)))
    layout = Layout(**settings)
    return layout if "shard" in settings else replace(layout, shard=3 if layout.shards > 1 else 0)
