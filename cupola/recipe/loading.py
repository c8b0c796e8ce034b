"""From a file and `--set` to a whole, frozen recipe; every mistake is one line with file, line and key.

    FILE:LINE: stages.pretrain.sequense_length: unknown key; did you mean sequence_length?

The order: the file on top of what its `base:` names, `model:` on top of its preset, `--set` from left to
right on top of that; then paths and environment variables, all of it on top of what `begin:` names, the
schema, what stages pass on, and the checks across blocks. What comes out has every stage complete, and
writing it down (`dump`) and loading that again gives the same recipe.
"""

import contextlib
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cupola.errors import InputError
from cupola.paths import runs_root
from cupola.recipe.alignment import FORMAT, LENGTH, STAGE
from cupola.recipe.checks import problems
from cupola.recipe.corpora import PACKAGES
from cupola.recipe.defaults import fill_stages
from cupola.recipe.document import Node, cut, is_text, read_document, read_value, shown
from cupola.recipe.lookup import find_preset, find_recipe, presets
from cupola.recipe.merging import assign, merge
from cupola.recipe.messages import explain, located
from cupola.recipe.model import Model
from cupola.recipe.origin import BEGIN, Origin, Reader, disagreements, laid_below
from cupola.recipe.problem import Problem
from cupola.recipe.schema import Recipe
from cupola.recipe.structure import kind_at
from cupola.recipe.variables import escaped, expand, unescaped


def load(
    path_or_name: str | Path, overrides: Sequence[str] = (), read_origin: Reader | None = None
) -> Recipe:
    """Load a recipe.

    Args:
        path_or_name: a file, or the name of a recipe in ./recipes or of a shipped one.
        overrides: `KEY=VALUE`, KEY dotted, VALUE in YAML; as `--set` gives them.
        read_origin: opens what `begin` names (`pipeline.origin.read_origin`); without it a recipe has to
            state its model, and nothing is held against the weights.

    Returns:
        The recipe with `tokens`, `sequence_length`, `batch_tokens` and `optimizer` of every stage stated.

    Raises:
        InputError: one line; it ends in "(and 2 more)" where there are more mistakes.
    """
    recipe, tree, found = _examined(path_or_name, overrides, read_origin)
    if recipe is None or found:
        cause = _cause(found[0], recipe is None, path_or_name, overrides, read_origin)
        raise _first([located(tree, problem.path, problem.message, cause) for problem in found])
    return recipe


def _examined(
    path_or_name: str | Path, overrides: Sequence[str], read_origin: Reader | None
) -> tuple[Recipe | None, Node, list[Problem]]:
    """The recipe, None where the schema refuses it; where everything in it was written; what is wrong."""
    tree = _read(find_recipe(str(path_or_name), Path()))
    for override in overrides:
        tree = _override(tree, override)
    tree = _resolve_paths(tree)
    origin = _origin(tree, read_origin)
    if origin is not None:
        tree = laid_below(tree, origin)
    try:
        recipe = fill_stages(Recipe.model_validate(tree.plain()))
    except ValidationError as error:
        return None, tree, explain(error, tree)
    apart = disagreements(recipe, origin) if origin is not None else ()
    return recipe, tree, [*apart, *problems(recipe)]


def _origin(tree: Node, read_origin: Reader | None) -> Origin | None:
    """What `begin` names; None where a recipe can do without: a run has a copy of what it began with, and
    its own recipe states model and tokenizer."""
    begin = _children(tree, BEGIN)
    weights = begin.get("weights")
    if read_origin is None or weights is None or not isinstance(weights.value, str):
        return None
    path = Path(str(unescaped(weights.value)))
    complete = {"layers", "width"} <= set(_children(tree, "model")) and "path" in _children(tree, "tokenizer")
    if complete and not path.exists():
        return None
    stage = begin.get("stage")
    try:
        return read_origin(path, None if stage is None or stage.value is None else str(stage.value))
    except InputError as error:
        raise InputError(located(tree, (BEGIN,), str(error))) from None


def _cause(
    problem: Problem,
    by_schema: bool,
    path_or_name: str | Path,
    overrides: Sequence[str],
    read_origin: Reader | None,
) -> str | None:
    """The override without which the problem is gone, the last of several: it is to blame and not the file.

    Found by leaving out each in turn, so that also what an override takes away is traced.

    Args:
        by_schema: the schema has it; else a recipe that the schema refuses tells nothing of it.
    """
    for index in reversed(range(len(overrides))):
        others = [*overrides[:index], *overrides[index + 1 :]]
        with contextlib.suppress(InputError):
            recipe, _, left = _examined(path_or_name, others, read_origin)
            if problem not in left and (by_schema or recipe is not None):
                return overrides[index]
    return None


def load_preset(name: str) -> Model:
    """A shipped model preset.

    Raises:
        InputError: there is none of that name.
    """
    tree = read_document(find_preset(name, Path(), ""))
    try:
        return Model.model_validate(tree.plain())
    except ValidationError as error:
        whole = Node({"model": tree}, tree.where, tree.folder)
        found = explain(error, whole)
        raise _first([located(whole, problem.path, problem.message) for problem in found]) from None


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON-able values, without what is unset."""
    return recipe.model_dump(mode="json", exclude_none=True)


def _first(lines: list[str]) -> InputError:
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return InputError(f"{lines[0]}{more}")


def _read(path: Path, heirs: tuple[Path, ...] = ()) -> Node:
    """A document on top of its base, and its base's."""
    tree = read_document(path)
    content = dict(tree.value)
    base = content.pop("base", None)
    fresh = "model" in content and _names_preset(content["model"])
    if "model" in content:
        content["model"] = _with_preset(content["model"])
    above = Node(content, tree.where, tree.folder)
    empty = Node({}, tree.where, tree.folder)
    if base is None or base.value is None:
        return merge(empty, above, kind_at(()))
    below = _base(base, (*heirs, path.resolve()))
    if fresh:
        below = Node({k: v for k, v in below.value.items() if k != "model"}, below.where, below.folder)
    return merge(below, above, kind_at(()))


def _base(base: Node, heirs: tuple[Path, ...]) -> Node:
    where = f"{base.where}: base: "
    if not isinstance(base.value, str):
        raise InputError(f"{where}a file or the name of a recipe is expected, not {cut(repr(base.value))}")
    if base.value in presets() and not (base.folder / base.value).exists():
        return Node({"model": read_document(presets()[base.value])}, base.where, base.folder)
    path = find_recipe(base.value, base.folder, where)
    if path.resolve() in heirs:
        ring = " -> ".join(shown(heir) for heir in (*heirs[heirs.index(path.resolve()) :], path))
        raise InputError(f"{where}recipes that build on each other in a circle: {ring}")
    return _read(path, heirs)


def _names_preset(model: Node) -> bool:
    """`model: llama3-8b` or `model: {base: llama3-8b, ...}`: nothing of an earlier model remains."""
    return isinstance(model.value, str) or (isinstance(model.value, dict) and "base" in model.value)


def _with_preset(model: Node) -> Node:
    """The model block on top of the preset that it names."""
    if not _names_preset(model):
        return model
    block = {"base": model} if isinstance(model.value, str) else dict(model.value)
    base = block.pop("base")
    where = f"{base.where}: model.base: "
    if not isinstance(base.value, str):
        raise InputError(f"{where}the name of a preset is expected, not {cut(repr(base.value))}")
    preset = read_document(find_preset(base.value, base.folder, where))
    return merge(preset, Node(block, model.where, model.folder), Model, ("model",))


def _override(tree: Node, override: str) -> Node:
    if not is_text(override):
        raise InputError(f"--set {override!r}: is not UTF-8 text")
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(
            f"--set {override}: KEY=VALUE is expected, such as stages.pretrain.learning_rate=3e-4"
        )
    value = read_value(text.strip(), f"--set {override}", Path.cwd())
    if path == ["model", "base"]:
        path, value = ["model"], Node({"base": value}, value.where, value.folder)
    if path == ["model"] and _names_preset(value):
        return Node({**tree.value, "model": _with_preset(value)}, tree.where, tree.folder)
    return assign(tree, kind_at(()), path, value)


def _resolve_paths(tree: Node) -> Node:
    """Environment variables, `~` and relative paths, each against the folder of the file that wrote it."""
    for name, corpus in (_children(tree, "corpora")).items():
        tree = _replace(tree, ("corpora", name), _corpus_paths(corpus, ("corpora", name)))
    if (begin := tree.value.get(BEGIN)) is not None and begin.value is not None:
        if not isinstance(begin.value, dict):
            begin = Node({"weights": begin}, begin.where, begin.folder)
        weights = begin.value.get("weights")
        found = {} if weights is None else {"weights": _run_path(weights, (BEGIN, "weights"))}
        tree = _replace(tree, (BEGIN,), Node({**begin.value, **found}, begin.where, begin.folder))
    for key in ("path", "chat_template"):
        if (path := _children(tree, "tokenizer").get(key)) is not None:
            tree = _replace(tree, ("tokenizer", key), _path(path, ("tokenizer", key)))
    for name in _children(tree, "stages"):
        way = ("stages", name, "policy", "rewards")
        rewards = tree.nearest(way)
        if isinstance(rewards.value, dict) and rewards is not tree.nearest(way[:-1]):
            found = {_reward_path(key, node, (*way, key)): node for key, node in rewards.value.items()}
            tree = _replace(tree, way, Node(found, rewards.where, rewards.folder))
    return tree


def _reward_path(name: str, node: Node, key: tuple[str, ...]) -> str:
    """The name of a reward; of one that is a function in a file, with the file's whole path."""
    file, colon, function = name.rpartition(":")
    if name.startswith((FORMAT, LENGTH, STAGE)) or not file.endswith(".py"):
        return name
    return f"{_path(Node(file, node.where, node.folder), key).value}{colon}{function}"


def _corpus_paths(corpus: Node, key: tuple[str, ...]) -> Node:
    if not isinstance(corpus.value, dict):
        return corpus
    if "fallback" in corpus.value:
        inner = _corpus_paths(corpus.value["fallback"], (*key, "fallback"))
        corpus = _replace(corpus, ("fallback",), inner)
    # Beside a package, `files` are patterns inside it.
    if "files" not in corpus.value or any(kind in corpus.value for kind in PACKAGES):
        return corpus
    return _replace(corpus, ("files",), _path(corpus.value["files"], (*key, "files")))


def _run_path(node: Node, key: tuple[str, ...]) -> Node:
    """The whole path of a folder; a bare name that is none may be that of a run."""
    found = _path(node, key)
    if isinstance(node.value, str) and os.path.basename(node.value) == node.value:
        known = runs_root() / node.value
        if not os.path.exists(str(unescaped(found.value))) and known.is_dir():
            return Node(escaped(os.path.abspath(known)), node.where, node.folder)
    return found


def _path(node: Node, key: tuple[str, ...]) -> Node:
    """The whole path; a glob finds its folder whatever characters that has."""
    if isinstance(node.value, list):
        return Node([_path(item, key) for item in node.value], node.where, node.folder)
    if not isinstance(node.value, str) or "://" in node.value:
        return node
    try:
        text = os.path.expanduser(expand(node.value))
    except KeyError as error:
        raise _refused(node, key, f"the environment variable {error.args[0]} is not set") from None
    if not text.strip():  # else it would be the recipe's whole folder
        raise _refused(node, key, "is empty; a path is expected, or . for the folder itself")
    is_glob = key[-1] == "files" and glob.has_magic(text)
    folder = glob.escape(str(node.folder)) if is_glob else str(node.folder)
    whole = os.path.normpath(os.path.join(folder, text))
    return Node(escaped(whole), node.where, node.folder)


def _refused(node: Node, key: tuple[str, ...], message: str) -> InputError:
    return InputError(located(Node({}, node.where, node.folder), key, message))


def _children(tree: Node, key: str) -> dict[str, Node]:
    node = tree.value.get(key)
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _replace(tree: Node, path: Sequence[str], value: Node) -> Node:
    key, *rest = path
    inner = _replace(tree.value[key], rest, value) if rest else value
    return Node({**tree.value, key: inner}, tree.where, tree.folder)
