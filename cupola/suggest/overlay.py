"""A proposal as a recipe on top of another.

A file is kept only if it loads as exactly what was proposed: blocks merge key by key over the base, so lines
that look right may mean something else. Hence it is loaded again, which costs a fraction of a second, and
compared as a whole with the recipe that was asked about; else it is removed, and the error says what differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cupola.errors import InputError
from cupola.recipe.document import KINDS, Node, read_value
from cupola.recipe.loading import load
from cupola.recipe.lookup import find_recipe, shipped_recipes
from cupola.recipe.origin import Reader
from cupola.recipe.schema import Recipe, Stage
from cupola.recipe.structure import Kind, kind_of
from cupola.suggest.proposal import Proposal

INHERITED = ("sequence_length", "rope", "batch_tokens", "optimizer")
"""What a stage takes over from the one before it, where it does not state it."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that is a number in YAML 1.2, as recipes are read, and not in 1.1, such as `1e-3`."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    number = any(pattern.fullmatch(text) for _, pattern in KINDS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if number else None)


_Dumper.add_representer(str, _quoted)


def as_yaml(value: dict[str, Any]) -> str:
    """Lines of a recipe."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def write_recipe(
    target: Path,
    recipe: str,
    overrides: Sequence[str],
    loaded: Recipe,
    stage: str,
    proposal: Proposal,
    read_origin: Reader | None = None,
) -> list[str]:
    """Write a recipe: `recipe`, with the overrides, with the proposal as a stage's settings.

    Args:
        target: a file that does not exist yet.
        recipe: the base, a file or a name.
        overrides: as `--set` gives them.
        loaded: what these two load as.
        stage: the stage for which the proposal is.
        read_origin: as `recipe.loading.load` has it.

    Returns:
        What changes with it in later stages.

    Raises:
        InputError: the file exists or can't be written, or does not load as the proposal.
    """
    name = f"{loaded.name}-suggested"
    changes = _lay(_settings(overrides), {"name": name, "stages": {stage: proposal.stage}}, Recipe)
    text = as_yaml({"base": _base(recipe, target), "name": name, **changes})
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(f"# Settings by `cupola suggest`.\n{text}")
    except FileExistsError:
        raise InputError(f"--write {target}: exists; choose another file") from None
    except OSError as error:
        raise InputError(f"--write {target}: cannot be written ({error.strerror})") from error
    try:
        written = load(target, read_origin=read_origin)
        differences = list(_differences(written, loaded, stage, proposal))
        if differences:
            raise InputError(f"{', '.join(differences)} would not be as proposed and as --set has it")
    except InputError as error:
        target.unlink()
        raise InputError(f"--write {target}: nothing is written: on top of {recipe}, {error}") from None
    except BaseException:
        target.unlink()
        raise
    return list(_later(written, loaded, stage))


def _base(recipe: str, target: Path) -> str:
    """What `base:` says: the name of a shipped recipe if it means the same beside the target, else a path."""
    path = find_recipe(recipe, Path())
    if path.stem in shipped_recipes() and path.stem != target.stem:
        named = find_recipe(path.stem, target.parent)
        if named.samefile(path):
            return path.stem
    return str(path.resolve())


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What `--set` sets, as a recipe states it; nulls remain, to take away what is in the base."""
    tree: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        path = key.strip().split(".")
        value = _bare(read_value(text.strip(), f"--set {override}", Path.cwd()))
        if path == ["model"] and isinstance(value, str):
            path, value = ["model", "base"], value
        if path == ["model", "base"]:  # nothing of an earlier model remains
            tree.pop("model", None)
        for name in reversed(path):
            value = {name: value}
        tree = _lay(tree, value, Recipe)
    return tree


def _bare(node: Node) -> Any:
    """A value without its places, but with its nulls."""
    if isinstance(node.value, dict):
        return {key: _bare(inner) for key, inner in node.value.items()}
    if isinstance(node.value, list):
        return [_bare(inner) for inner in node.value]
    return node.value


def _lay(below: Any, above: Any, kind: Kind) -> Any:
    """One part of an overlay on top of another: as recipes merge, save that nulls remain."""
    below, above = _expanded(below, kind), _expanded(above, kind)
    if kind is None or not isinstance(below, dict) or not isinstance(above, dict):
        return above
    inner = {key: _lay(below.get(key), value, kind_of(kind, key)) for key, value in above.items()}
    return {**below, **inner}


def _expanded(value: Any, kind: Kind) -> Any:
    shorthand = getattr(kind, "shorthand", None)
    if shorthand is None or value is None or isinstance(value, dict):
        return value
    return {shorthand: value}


def _differences(written: Recipe, loaded: Recipe, stage: str, proposal: Proposal) -> Iterator[str]:
    """Settings that are neither as proposed, nor as they were, nor taken over from the proposal's stage."""
    for field in Recipe.model_fields:
        if field not in ("name", "stages") and getattr(written, field) != getattr(loaded, field):
            yield field
    if list(written.stages) != list(loaded.stages):
        yield "stages"
        return
    expected = {**loaded.stages, stage: _stage(loaded.stages[stage], proposal)}
    for name, found in written.stages.items():
        for field in Stage.model_fields:
            free = name != stage and field in INHERITED
            if not free and getattr(found, field) != getattr(expected[name], field):
                yield f"stages.{name}.{field}"


def _stage(now: Stage, proposal: Proposal) -> Stage:
    """A stage with what the proposal's lines mean by themselves."""
    lines = {key: _without_nulls(value) for key, value in proposal.stage.items()}
    asked = Stage.model_validate({"data": now.data, **lines})
    return now.model_copy(update={field: getattr(asked, field) for field in lines})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: inner for key, inner in value.items() if inner is not None}
    return value


def _later(written: Recipe, loaded: Recipe, stage: str) -> Iterator[str]:
    """What other stages take over from this one, and had otherwise before."""
    for name, found in written.stages.items():
        changed = [
            field for field in INHERITED if getattr(found, field) != getattr(loaded.stages[name], field)
        ]
        if name != stage and changed:
            yield f"stage {name} takes over {', '.join(changed)}, which change with it"
