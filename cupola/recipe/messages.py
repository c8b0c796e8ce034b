"""pydantic's errors as lines for people: what, where, what was expected.

One line for each key: a value that may be several things (`int | "auto"`) has one line, not one for each.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from cupola.recipe.document import Key, Node, cut, dotted
from cupola.recipe.problem import Problem
from cupola.recipe.structure import Entries, did_you_mean, homes, kind_at

ELSEWHERE = {
    "n_layer": "layers",
    "n_layers": "layers",
    "num_layers": "layers",
    "num_hidden_layers": "layers",
    "n_head": "heads",
    "n_heads": "heads",
    "num_heads": "heads",
    "num_attention_heads": "heads",
    "n_kv_heads": "key_value_heads",
    "num_key_value_heads": "key_value_heads",
    "n_embd": "width",
    "dim": "width",
    "d_model": "width",
    "hidden_size": "width",
    "head_dim": "head_width",
    "intermediate_size": "feedforward",
    "vocab_size": "vocabulary",
    "tie_word_embeddings": "tied",
    "lr": "learning_rate",
    "max_seq_len": "sequence_length",
    "seq_len": "sequence_length",
    "block_size": "sequence_length",
    "batch_size": "batch_tokens",
    "grad_clip": "gradient_clip",
    "max_steps": "tokens",
    "steps": "tokens",
    "epochs": "tokens",
}
"""What other systems call it."""

OVERRIDE = "--set "
"""How the location of a value begins that the command line gave."""

WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def located(tree: Node, path: Sequence[Key], message: str, cause: str | None = None) -> str:
    """`FILE:LINE: key: message`, or `--set KEY=VALUE: message` where the key is that KEY.

    Args:
        cause: the KEY=VALUE that is to blame where the key itself was written in a file.
    """
    where = tree.nearest(path).where
    if cause is not None and not _is_override(where):
        where = f"{OVERRIDE}{cause}"
    key = dotted(path)
    if where.startswith(f"{OVERRIDE}{key}=") or not key:
        return f"{where}: {message}"
    return f"{where}: {key}: {message}"


def _is_override(where: str) -> bool:
    return where.startswith(OVERRIDE)


def explain(error: ValidationError, tree: Node) -> list[Problem]:
    """A problem for each key at fault; missing keys last, since a misspelt one is often why they are."""
    at_key: dict[tuple[Key, ...], list[Any]] = {}
    for item in sorted(error.errors(), key=lambda item: item["type"] == "missing"):
        at_key.setdefault(_path(item, tree), []).append(item)
    return [
        Problem(path, _message(path, items, _is_override(tree.nearest(path).where)))
        for path, items in at_key.items()
        if not _decided_deeper(path, items, list(at_key))
    ]


def _decided_deeper(path: tuple[Key, ...], items: list[Any], paths: list[tuple[Key, ...]]) -> bool:
    """A list that isn't text either, whose items are wrong: the items' lines say it."""
    deeper = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    return deeper and all(item["type"] in (*WANTED, "literal_error") for item in items)


def _path(item: Any, tree: Node) -> tuple[Key, ...]:
    """The key at fault: pydantic's location without the tags of unions and expanded shorthands."""
    path: tuple[Key, ...] = ()
    for key in item["loc"]:
        if tree.nearest((*path, key)) is not tree.nearest(path):
            path = (*path, key)
    return (*path, item["loc"][-1]) if item["type"] == "missing" else path


def _message(path: tuple[Key, ...], items: list[Any], overridden: bool) -> str:
    first = items[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(path, overridden)
    if first["type"] == "missing":
        return f"is missing{_about(path)}"
    wanted = [_wanted(item) for item in items]
    if all(wanted):
        return f"{' or '.join(dict.fromkeys(map(str, wanted)))} is expected, not {_short(first['input'])}"
    decisive = next((item for item in items if _wanted(item) is None), first)
    return _single(decisive)


def _options(item: Any) -> list[str]:
    return re.findall(r"'([^']*)'", item["ctx"]["expected"])


def _wanted(item: Any) -> str | None:
    """The kind of value that was expected, where that is what is wrong."""
    if item["type"] == "literal_error" and len(item["ctx"]["expected"].split()) == 1:
        return str(item["ctx"]["expected"]).strip("'")
    return WANTED.get(item["type"])


def _single(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    value = _short(item["input"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        options = _options(item)
        close = did_you_mean(str(item["input"]), options)
        hint = f"; did you mean {close}?" if close else ""
        return f"{', '.join(options)} are possible, not {value}{hint}"
    if kind in LIMITS:
        name, words = LIMITS[kind]
        return f"must be {words} {context[name]:g}, not {value}"
    if kind == "string_pattern_mismatch":
        allowed = "letters, digits, '-', '_'" + (" and '.'" if "._" in context["pattern"] else "")
        return f"a name of {allowed} is expected, not {value}"
    if kind in ("too_long", "too_short"):
        most = kind == "too_long"
        limit = context["max_length" if most else "min_length"]
        values = "value is" if limit == 1 else "values are"
        return f"at {'most' if most else 'least'} {limit} {values} expected, not {context['actual_length']}"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}"


def _unknown_key(path: tuple[Key, ...], overridden: bool) -> str:
    """What might have been meant; the whole dotted key where it was typed after `--set`."""
    *above, key = path
    kind = kind_at(above)
    known = list(kind.model_fields) if isinstance(kind, type) else []
    name = ELSEWHERE.get(str(key), str(key))
    close = name if name in known else did_you_mean(str(key), known)
    if close:
        return f"unknown key; did you mean {dotted((*above, close)) if overridden else close}?"
    places = [place or "the top level" for place in homes(name)]
    if places:
        return f"unknown key here; {name} stands in {' or '.join(places[:2])}"
    return f"unknown key; {dotted(above) or 'a recipe'} has {', '.join(known)}"


def _about(path: tuple[Key, ...]) -> str:
    """The first sentence of what the schema says of a key."""
    *above, key = path
    kind = kind_at(above)
    if kind is None or isinstance(kind, Entries):
        return ""
    text = " ".join((kind.model_fields[str(key)].description or "").split())
    return f" ({text.partition('. ')[0].rstrip('.')})" if text else ""


def _short(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else cut(repr(value))
