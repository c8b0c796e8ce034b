"""The variants of a comparison: recipes x groups of settings x values of each `--vary`, all over seeds.

All of it is resolved and validated before anything runs, and what runs is the resolved recipe: a file that is
edited in the meantime changes nothing. A run is known by the digest of its resolved recipe without its name,
so that a larger grid finds again what a smaller one trained, whatever it calls it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from cupola import storage
from cupola.errors import InputError
from cupola.models.table.trained import refuse_unknown
from cupola.pipeline.origin import read_origin
from cupola.recipe.document import Node, read_document, read_value
from cupola.recipe.loading import load
from cupola.recipe.schema import Recipe
from cupola.recipe.structure import Kind, kind_at, kind_of

OPENING, CLOSING, QUOTES = "[{", "]}", "\"'"


@dataclass(frozen=True)
class Group:
    """Settings under one name: one value of a `--vary`, or one entry of `--variant`."""

    label: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """One run: a variant with one seed.

    Attributes:
        overrides: what is set for all variants, as `--set` takes it.
        settings: what distinguishes the variant from its recipe, likewise; above `overrides`.
        recipe: resolved; `name` is that of its folder.
        identity: digest of the recipe without its name, and of what else shapes the run.
    """

    variant: str
    seed: int
    source: str
    overrides: tuple[str, ...]
    settings: tuple[str, ...]
    recipe: Recipe
    identity: str


def parse_vary(texts: Sequence[str]) -> list[list[Group]]:
    """`KEY=V1,V2,...` of each `--vary`; commas inside brackets and quotes belong to a value.

    Raises:
        InputError: no key, no value, an empty or a repeated value, a key twice.
    """
    axes, keys = [], []
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not all(key.split(".")):
            raise InputError(
                f"--vary {text}: KEY=V1,V2,... is expected, such as stages.pretrain.learning_rate=1e-3,3e-3"
            )
        if key == "seed":
            raise InputError(f"--vary {text}: seeds are no variants; say --seeds 3, or --seed 1 --seed 2")
        if key in keys:
            raise InputError(f"--vary {text}: {key} is varied twice; give all its values once")
        found = _split(values)
        if not all(found):
            raise InputError(f"--vary {text}: a value is missing; separate values by one comma")
        if len(set(found)) < len(found):
            raise InputError(f"--vary {text}: a value is given twice")
        keys.append(key)
        axes.append([(key, value) for value in found])
    names = _short_names(keys)
    return [[Group(f"{names[key]}={value}", (f"{key}={value}",)) for key, value in values] for values in axes]


def _split(text: str) -> list[str]:
    """At the commas that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        depth += (character in OPENING) - (character in CLOSING) if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that no other key has."""
    names = {}
    for key in keys:
        words = key.split(".")
        endings = [".".join(words[-length:]) for length in range(1, len(words) + 1)]
        others = [f".{other}" for other in keys if other != key]
        names[key] = next((e for e in endings if not any(o.endswith(f".{e}") for o in others)), key)
    return names


def parse_groups(inline: Sequence[str], files: Sequence[Path]) -> list[Group]:
    """`NAME: {KEY: VALUE, ...}` of each `--variant`, and the same of each file of `--variants`.

    Raises:
        InputError: no such mapping, or a name twice.
    """
    groups: dict[str, Group] = {}
    nodes = [(f"--variant {text}", read_value(text, f"--variant {text}", Path.cwd())) for text in inline]
    nodes += [(f"--variants {path}", read_document(path)) for path in files]
    for where, node in nodes:
        if not isinstance(node.value, dict) or not node.value:
            raise InputError(
                f"{where}: NAME: {{KEY: VALUE, ...}} is expected, such as"
                " 'soap: {stages.pretrain.optimizer: soap, stages.pretrain.learning_rate: 3e-3}'"
            )
        for name, settings in node.value.items():
            if name in groups:
                raise InputError(f"{where}: variant {name} is there twice")
            groups[name] = Group(name, _settings(where, name, settings))
    return list(groups.values())


def _settings(where: str, name: str, node: Node) -> tuple[str, ...]:
    if node.value is None:
        return ()
    if not isinstance(node.value, dict):
        raise InputError(f"{where}: variant {name}: a mapping of keys to values is expected")
    return tuple(f"{key}={_as_yaml(value)}" for key, value in node.value.items())


def _as_yaml(node: Node) -> str:
    """A value as one line, nulls inside it kept."""

    def plain(node: Node) -> object:
        if isinstance(node.value, dict):
            return {key: plain(inner) for key, inner in node.value.items()}
        return [plain(inner) for inner in node.value] if isinstance(node.value, list) else node.value

    text = yaml.safe_dump(plain(node), default_flow_style=True, width=10**9, allow_unicode=True)
    return text.strip().removesuffix("\n...").strip()


def plan_grid(
    recipes: Sequence[str],
    groups: Sequence[Group],
    axes: Sequence[Sequence[Group]],
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    beside: object = None,
) -> list[Planned]:
    """Every run of the grid: all variants of the first seed, then of the next.

    Args:
        seeds: by default each recipe's own.
        overrides: `--set` for all of them, below what distinguishes the variants.
        beside: what else two runs must share to be the same (JSON-able).

    Raises:
        InputError: a variant that the schema or the checks refuse, by its name; two that are the same.
    """
    if len(set(recipes)) < len(recipes):
        raise InputError("a recipe is given twice; give each once")
    _refuse_overlaps(groups, axes)
    dimensions = [[Group(name) for name in _recipe_names(recipes)], groups or [Group("")], *axes]
    cells = list(product(*dimensions))
    planned: dict[str, Planned] = {}
    which: Sequence[int | None] = seeds or [None]
    for seed in which:
        for (named, *chosen), source in zip(cells, _repeat(recipes, len(cells)), strict=True):
            labels = ([named.label] if len(recipes) > 1 else []) + [g.label for g in chosen if g.label]
            settings = tuple(setting for group in chosen for setting in group.settings)
            run = _plan(", ".join(labels) or named.label, source, settings, overrides, seed, beside)
            if run.identity in planned:
                twin = planned[run.identity].variant
                raise InputError(f"variants {twin} and {run.variant} are the same recipe; leave one out")
            planned[run.identity] = run
    return list(planned.values())


def _refuse_overlaps(groups: Sequence[Group], axes: Sequence[Sequence[Group]]) -> None:
    """What a group and a `--vary` set, or two of these, has one value under two names.

    Settings overlap where they set the same key, or one a block and the other a key in it.
    """
    varied = [{key for group in axis for key in _keys_set(group)} for axis in axes]
    for number, keys in enumerate(varied):
        for group in groups:
            if shared := _overlap(_keys_set(group), keys):
                raise InputError(f"variant {group.label} sets {shared}, which --vary sets as well")
        for others in varied[:number]:
            if shared := _overlap(others, keys):
                raise InputError(f"two --vary set {shared}; give all its values in one of them")


def _keys_set(group: Group) -> set[tuple[str, ...]]:
    """Every key that a group sets, as a path; a shorthand counts as the key that it stands for."""
    found: set[tuple[str, ...]] = set()
    for setting in group.settings:
        key, _, text = setting.partition("=")
        path = tuple(key.split("."))
        found.update(_keys_below(path, kind_at(path), read_value(text, f"--set {setting}", Path.cwd())))
    return found


def _keys_below(path: tuple[str, ...], kind: Kind, node: Node) -> Iterator[tuple[str, ...]]:
    """As far down as blocks merge key by key; what is no block is replaced whole."""
    shorthand = getattr(kind, "shorthand", None)
    if path == ("model", "base"):
        yield ("model",)  # of which a preset leaves nothing
    elif kind is not None and isinstance(node.value, dict) and node.value:
        for name, inner in node.value.items():
            yield from _keys_below((*path, name), kind_of(kind, name), inner)
    elif shorthand is not None and node.value is not None:
        yield (*path, shorthand)
    else:
        yield path


def _overlap(mine: set[tuple[str, ...]], theirs: set[tuple[str, ...]]) -> str | None:
    """A key of one that is, holds or lies in a key of the other; the longer of the two."""
    for one, other in product(sorted(mine), sorted(theirs)):
        shorter = min(len(one), len(other))
        if one[:shorter] == other[:shorter]:
            return ".".join(one if len(one) > len(other) else other)
    return None


def _repeat(recipes: Sequence[str], cells: int) -> list[str]:
    return [recipe for recipe in recipes for _ in range(cells // len(recipes))]


def _recipe_names(recipes: Sequence[str]) -> list[str]:
    """The files' names, or the whole paths where those are not told apart."""
    stems = [Path(recipe).stem for recipe in recipes]
    return [stem if stems.count(stem) == 1 else recipe for stem, recipe in zip(stems, recipes, strict=True)]


def _plan(
    variant: str,
    source: str,
    settings: tuple[str, ...],
    overrides: Sequence[str],
    seed: int | None,
    beside: object,
) -> Planned:
    seeded = [] if seed is None else [f"seed={seed}"]
    try:
        recipe = load(source, [*overrides, *settings, *seeded], read_origin)
        refuse_unknown(recipe)
    except InputError as error:
        raise InputError(f"variant {variant}: {error}") from None
    values = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    # A mapping's order counts (stages run in it), so the digest is of a text and not of the mapping.
    identity = storage.digest([yaml.safe_dump(values, sort_keys=False), beside])[:12]
    return Planned(variant, recipe.seed, source, tuple(overrides), settings, recipe, identity)
