"""The weights that a recipe begins with: what is left out is taken from there, what is stated must agree.

Here nothing is opened. `cupola.pipeline.origin` reads a folder; `loading.load` is given that function, and
lays the recipe on top of what it found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cupola.recipe.document import Node
from cupola.recipe.kinds import WholePath
from cupola.recipe.model import Model
from cupola.recipe.problem import Problem
from cupola.recipe.strict import Strict
from cupola.recipe.variables import escaped

if TYPE_CHECKING:
    from cupola.recipe.schema import Recipe

BEGIN = "begin"
"""The name under which stages and commands know the weights that a run begins with."""
FREE_OF_EXPERTS = {"balance", "balance_weight", "bias_rate"}
"""Settings of training alone."""
OF_TRAINING = ("kind", "path", "vocabulary", "train_on", "train_bytes")
"""Keys of the tokenizer that say where it comes from."""


class Begin(Strict):
    """Weights from elsewhere that the first stage begins with."""

    shorthand = "weights"
    weights: WholePath
    """A folder of Hugging Face's, or the folder (or name) of a run, trained or imported."""
    stage: str | None = Field(default=None, min_length=1)
    """Which stage of a run; by default the last one that is finished."""


@dataclass(frozen=True)
class Origin:
    """What is known of such weights before they are read.

    Attributes:
        stage: of a run, the one that was found.
        model: with `vocabulary` the rows of embedding and head, `max_positions` the context that the weights
            have come to.
        tokenizer: its `tokenizer.json`, or None.
        chat_template: the folder of a template that goes with it, or None.
    """

    path: Path
    stage: str | None
    model: Model
    tokenizer: Path | None
    chat_template: Path | None


Reader = Callable[[Path, str | None], Origin]
"""Opens a folder, and a stage of it.

Raises:
    InputError: there are no such weights, or Cupola computes no such model.
"""


def laid_below(tree: Node, origin: Origin) -> Node:
    """The recipe with what it leaves out of model, tokenizer and stage.

    Args:
        tree: has a `begin` with `weights`.
    """
    begin = tree.value[BEGIN]

    def node(value: Any) -> Node:
        if isinstance(value, dict):
            value = {key: node(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            value = [node(inner) for inner in value]
        return Node(value, begin.where, begin.folder)

    found = {**tree.value}
    if origin.stage is not None:
        found[BEGIN] = Node({**begin.value, "stage": node(origin.stage)}, begin.where, begin.folder)
    found["model"] = _below(
        tree.value.get("model"), node(origin.model.model_dump(mode="json", exclude_unset=True))
    )
    tokenizer = tree.value.get("tokenizer") or node({})
    if isinstance(tokenizer.value, dict) and not any(key in tokenizer.value for key in OF_TRAINING):
        theirs: dict[str, Any] = {}
        if origin.tokenizer is not None:
            theirs |= {"kind": "file", "path": escaped(str(origin.tokenizer))}
        if origin.chat_template is not None:
            theirs["chat_template"] = escaped(str(origin.chat_template))
        found["tokenizer"] = _below(tokenizer, node(theirs))
    return Node(found, tree.where, tree.folder)


def _below(stated: Node | None, theirs: Node) -> Node:
    """What is stated on top of what was found, key by key."""
    if stated is None or stated.value is None:
        return theirs
    if not isinstance(stated.value, dict) or not isinstance(theirs.value, dict):
        return stated
    merged = dict(theirs.value)
    for key, inner in stated.value.items():
        merged[key] = _below(inner, merged[key]) if key in merged else inner
    return Node(merged, stated.where, stated.folder)


def disagreements(recipe: "Recipe", origin: Origin) -> Iterator[Problem]:
    """Where model and tokenizer are not those of the weights."""
    if recipe.tokenizer.kind != "file":
        why = "trains one" if origin.tokenizer else "would train one"
        cure = "leave it out, or give kind and path of theirs"
        yield Problem(
            ("tokenizer",), f"{why}, and the weights of {origin.path} go with the one that they had; {cure}"
        )
    stated, theirs = recipe.model, origin.model
    # A context that is stated is what the weights are used for, but of learned positions, which are weights.
    free = {"init_std"} if stated.positions == "learned" else {"init_std", "max_positions"}
    for key in type(stated).model_fields:
        mine, their = getattr(stated, key), getattr(theirs, key)
        if key == "experts" and mine and their:
            their = their.model_copy(update={name: getattr(mine, name) for name in FREE_OF_EXPERTS})
        if key == "vocabulary":
            if mine is not None and their is not None and mine < their:
                yield Problem(
                    ("model", key), f"{mine} is less than the {their} rows of the weights of {origin.path}"
                )
        elif mine != their and key not in free:
            hint = "state it in the first stage, or leave it out" if key == "rope" else "leave it out"
            yield Problem(
                ("model", key),
                f"{_short(mine)} is not what the weights of {origin.path} have, {_short(their)}; {hint}",
            )


def _short(value: Any) -> str:
    return str(value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, Strict) else value)
