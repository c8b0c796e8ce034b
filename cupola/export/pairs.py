"""How tensors of a home format correspond to ours: the words in which each format says it.

A `Pair` is some of theirs and some of ours that hold the same numbers in another arrangement; nothing is ever
computed, so there and back is the identity to the bit, and gradients are converted by the same pairs. What a
file must hold is worked out by sending our shapes through the pairs on torch's meta device, which takes no
memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cupola.errors import InputError
from cupola.models import table
from cupola.recipe.model import Model

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pair:
    """Tensors of theirs and of ours that hold the same numbers."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to: Callable[[list[Tensor]], list[Tensor]]
    """Ours -> theirs."""
    back: Callable[[list[Tensor]], list[Tensor]]
    """Theirs -> ours."""


def _same(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


def _transpose(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.T.contiguous() for tensor in tensors]


def renamed(theirs: str, ours: str) -> Pair:
    """The same tensor."""
    return Pair((theirs,), (ours,), _same, _same)


def transposed(theirs: str, ours: str) -> Pair:
    """A matrix the other way round."""
    return Pair((theirs,), (ours,), _transpose, _transpose)


def reshaped(theirs: str, ours: str, their_shape: Sequence[int], our_shape: Sequence[int]) -> Pair:
    """The same numbers in the same order."""
    return Pair(
        (theirs,),
        (ours,),
        lambda tensors: [tensors[0].reshape(tuple(their_shape))],
        lambda tensors: [tensors[0].reshape(tuple(our_shape))],
    )


def joined(
    theirs: str,
    ours: Sequence[str],
    rows: Sequence[int],
    axis: int = 0,
    transpose: bool = False,
    unit: bool = False,
) -> Pair:
    """One of theirs is several of ours end to end.

    Args:
        rows: how many rows (outputs) each of ours has.
        axis: of ours, along which they are joined.
        transpose: theirs is the other way round.
        unit: theirs has an axis of length 1 before the last (a depthwise convolution's).
    """

    def to(tensors: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(tensors, axis)
        whole = whole.T.contiguous() if transpose else whole
        return [whole.unsqueeze(-2) if unit else whole]

    def back(tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].squeeze(-2) if unit else tensors[0]
        whole = whole.T if transpose else whole
        return [part.contiguous() for part in whole.split(list(rows), axis)]

    return Pair((theirs,), tuple(ours), to, back)


def stacked(theirs: Sequence[str], ours: str) -> Pair:
    """Several of theirs are one of ours along a new first axis (experts)."""
    return Pair(
        tuple(theirs),
        (ours,),
        lambda tensors: list(tensors[0].unbind()),
        lambda tensors: [torch.stack(tensors)],
    )


def our_shapes(model: Model, vocabulary: int) -> Shapes:
    """The parameters of a model by name, buffers included."""
    return {p.name: p.shape for p in table.parameters(model, vocabulary)}


def their_shapes(pairs: Iterable[Pair], shapes: Shapes) -> Shapes:
    """What a file of the format holds for tensors of ours of these shapes."""
    found: Shapes = {}
    for pair in pairs:
        inputs = [torch.empty(shapes[name], device="meta") for name in pair.ours]
        found |= {n: tuple(t.shape) for n, t in zip(pair.theirs, pair.to(inputs), strict=True)}
    return found


def to_theirs(state: Mapping[str, Tensor], pairs: Iterable[Pair]) -> dict[str, Tensor]:
    """Our tensors under their names; those that keep their arrangement are not copied."""
    found: dict[str, Tensor] = {}
    for pair in pairs:
        tensors = pair.to([state[name] for name in pair.ours])
        found |= dict(zip(pair.theirs, tensors, strict=True))
    return found


def to_ours(state: Mapping[str, Tensor], pairs: Iterable[Pair]) -> dict[str, Tensor]:
    """The inverse of `to_theirs`; `state` is asked for one pair's tensors at a time."""
    found: dict[str, Tensor] = {}
    for pair in pairs:
        tensors = pair.back([state[name] for name in pair.theirs])
        found |= dict(zip(pair.ours, tensors, strict=True))
    return found


def compare(found: Shapes, expected: Shapes, origin: str) -> None:
    """Refuse a file that holds other tensors than its settings say.

    Raises:
        InputError: names what is missing, what is there beside, and what has another shape.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {_shape(found[name])}, not {_shape(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    lists = (("missing", missing), ("not expected", extra), ("of another shape", wrong))
    parts = [f"{len(names)} {_tensors(names)} {what}: {_first(names)}" for what, names in lists if names]
    if parts:
        raise InputError(f"{origin}: {'; '.join(parts)}; nothing was loaded")


SHOWN = 4


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _tensors(names: list[str]) -> str:
    return "tensor is" if len(names) == 1 else "tensors are"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
