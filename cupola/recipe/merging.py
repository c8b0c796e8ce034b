"""One recipe on top of another, and `--set` on top of both.

Blocks merge key by key and keep the order of the base; new stages follow after. What is not a block (a
schedule, a mixture, a list) is replaced whole. A single value over a block that has a shorthand sets only
that key: `learning_rate: 1e-3` over `{peak: 3e-4, warmup: 2%}` keeps the warm-up. Null takes a key away,
so that its default holds again; a stage or corpus set to null is gone.
"""

from collections.abc import Sequence

from cupola.errors import InputError
from cupola.recipe.document import Key, Node, dotted
from cupola.recipe.structure import Entries, Kind, did_you_mean, kind_of


def merge(below: Node | None, above: Node, kind: Kind, path: tuple[Key, ...] = ()) -> Node:
    """Lay a node over another of the same kind.

    Raises:
        InputError: a null that removes a stage or corpus that is not there.
    """
    if below is None or kind is None:
        return above
    below, above = _expand(below, kind), _expand(above, kind)
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    result = dict(below.value)
    for key, node in above.value.items():
        if node.value is None:
            if isinstance(kind, Entries) and key not in result:
                raise InputError(
                    f"{node.where}: {_unknown_entry((*path, key), result)}; there is nothing to remove"
                )
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), node, kind_of(kind, key), (*path, key))
    return Node(result, above.where, above.folder)


def assign(tree: Node, kind: Kind, path: Sequence[str], value: Node, done: tuple[Key, ...] = ()) -> Node:
    """Lay a value over what stands at a path, and return the whole tree.

    Raises:
        InputError: the path leads through a stage or corpus that is not there, or through a single value.
    """
    if not path:
        return merge(tree, value, kind, done)
    tree = _expand(tree, kind)
    if not isinstance(tree.value, dict):
        raise InputError(f"{value.where}: {dotted(done)} is one value, so it holds no {path[0]}")
    key, *rest = path
    below = tree.value.get(key)
    result = dict(tree.value)
    if below is None and isinstance(kind, Entries) and (rest or value.value is None):
        hint = f"to add it, give it whole: {dotted((*done, key))}={{...}}" if rest else "nothing to remove"
        raise InputError(f"{value.where}: {_unknown_entry((*done, key), result)}; {hint}")
    if not rest and value.value is None:
        result.pop(key, None)
    else:
        empty = Node({}, value.where, value.folder) if rest else None
        inner = below or empty
        result[key] = (
            assign(inner, kind_of(kind, key), rest, value, (*done, key)) if inner is not None else value
        )
    return Node(result, tree.where, tree.folder)


def _expand(node: Node, kind: Kind) -> Node:
    """A single value as the block that it is short for."""
    shorthand = getattr(kind, "shorthand", None)
    if shorthand is None or isinstance(node.value, dict) or node.value is None:
        return node
    return Node({shorthand: node}, node.where, node.folder)


def _unknown_entry(path: tuple[Key, ...], entries: dict[str, Node]) -> str:
    *above, name = path
    close = did_you_mean(str(name), entries)
    hint = f"did you mean {close}?" if close else f"there are {', '.join(entries) or 'none'}"
    return f"{dotted(above)} has no {name} ({hint})"
