"""Settings that change over a stage, as pure functions of the position.

Two kinds, written alike: one value; `{0%: 128, 40%: 256}`, values that hold from a position on; or
`{points: {0%: 128, 40%: 256}, between: linear}`, values that the way between positions leads to.

- `Piecewise`: whole numbers and mixtures (row lengths, batches, weights of sources), which can only change at
  stated places. The way from one point to the next is laid as a stair when the recipe is read: a number
  climbs by multiples of `multiple` and is never ahead of the straight line; a mixture takes `MIXTURE_STAIRS`
  equal steps.
- `Curve`: real numbers (weight decay, momentum), evaluated at any position.

A position is a percentage of the stage or a number of tokens.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, get_args

from cupola.recipe.quantity import Quantity

Between = Literal["steps", "linear", "cosine"]

MIXTURE_STAIRS = 16
"""Steps of a mixture from one point to the next."""
MOST_STAIRS = 1000
"""Steps of a number from one point to the next, at most: each is a shape that the hardware must get used
to."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Piecewise(Generic[Value]):
    """A value that changes at stated positions of the stage.

    Attributes:
        steps: (start, value) in order; the first starts at 0.
        points: (position, value) between which `steps` are the way, where they are; the last may lie at the
            end, where no step begins any more.
        written: the way it stands in a recipe, where that is not `steps`.
    """

    steps: tuple[tuple[Quantity, Value], ...]
    points: tuple[tuple[Quantity, Value], ...] = ()
    written: Any = None

    @classmethod
    def parse(cls, value: Any, parse_value: Callable[[Any], Value]) -> "Piecewise[Value]":
        """Read one value, a mapping of starts to values, or points with a way between them.

        Raises:
            ValueError: no start at 0, starts out of order, mixed units, a stair of too many steps.
        """
        if isinstance(value, Piecewise):
            return value
        if not isinstance(value, dict):
            return cls(((Quantity(0, "%"), parse_value(value)),))
        if "points" not in value:
            return cls(_points(value, parse_value))
        points, between = _read(value, ("points", "between", "multiple"), parse_value)
        if between == "cosine":
            raise ValueError("between is steps or linear for what changes in whole numbers")
        if "multiple" in value and (between != "linear" or isinstance(points[0][1], dict)):
            raise ValueError("multiple is for numbers with between: linear")
        if between == "steps":
            return cls(points, points, value)
        return cls(_stairs(points, value.get("multiple")), points, value)

    def starts(self, total: int) -> list[tuple[int, Value]]:
        """(position in tokens, value) of every change, the first at 0."""
        return [(_in_tokens(start, total), value) for start, value in self.steps]

    @property
    def values(self) -> list[Value]:
        """Every value that occurs, in order."""
        return [value for _, value in self.steps]

    def last(self) -> "Piecewise[Value]":
        """What it comes to, from beginning to end; also where a stair's last step would begin at the end."""
        _, value = (self.points or self.steps)[-1]
        return Piecewise(((Quantity(0, "%"), value),))

    def dump(self) -> Any:
        """As it is written in a recipe."""
        if self.written is not None:
            return {**self.written, "points": {str(k): v for k, v in self.written["points"].items()}}
        if len(self.steps) == 1:
            return self.steps[0][1]
        return {str(start): value for start, value in self.steps}


@dataclass(frozen=True)
class Curve:
    """A real number over the stage: points and the way between them; after the last it stays there."""

    points: tuple[tuple[Quantity, float], ...]
    between: Between = "steps"

    @classmethod
    def parse(cls, value: Any, parse_value: Callable[[Any], float]) -> "Curve":
        """Read one number, a mapping of starts to numbers, or points with a way between them.

        Raises:
            ValueError: no start at 0, starts out of order, mixed units, a number out of bounds.
        """
        if isinstance(value, Curve):
            return value
        if not isinstance(value, dict):
            return cls(((Quantity(0, "%"), parse_value(value)),))
        if "points" not in value:
            return cls(_points(value, parse_value))
        return cls(*_read(value, ("points", "between"), parse_value))

    @classmethod
    def constant(cls, value: float) -> "Curve":
        """The same number from beginning to end."""
        return cls(((Quantity(0, "%"), value),))

    def at(self, position: float, total: int) -> float:
        """The number at a position of a stage of `total` tokens."""
        starts = [_in_tokens(start, total) for start, _ in self.points]
        index = max(number for number, start in enumerate(starts) if start <= position or number == 0)
        value = self.points[index][1]
        if self.between == "steps" or index + 1 == len(starts) or starts[index + 1] == starts[index]:
            return value
        way = (position - starts[index]) / (starts[index + 1] - starts[index])
        if self.between == "cosine":
            way = math.sin(math.pi / 2 * way) ** 2
        return value + (self.points[index + 1][1] - value) * way

    @property
    def values(self) -> list[float]:
        """The number at every point, in order."""
        return [value for _, value in self.points]

    def last(self) -> "Curve":
        """What it comes to, from beginning to end."""
        return Curve.constant(self.points[-1][1])

    def dump(self) -> Any:
        """As it is written in a recipe."""
        if len(self.points) == 1:
            return self.points[0][1]
        points = {str(start): value for start, value in self.points}
        return points if self.between == "steps" else {"points": points, "between": self.between}


def late_changes(value: Piecewise[Any] | Curve, total: int) -> list[Quantity]:
    """Positions in tokens that a stage of `total` never reaches."""
    if isinstance(value, Piecewise):
        points = value.points or value.steps
        at_the_end = bool(value.written) and value.written.get("between", "steps") != "steps"
    else:
        points, at_the_end = value.points, value.between != "steps"
    # The way to a point may end where the stage does; a value that holds from there on never counts.
    return [
        start
        for start, _ in points
        if start.unit == "tokens" and (start.amount > total or (start.amount == total and not at_the_end))
    ]


def _read(
    value: dict[str, Any], keys: tuple[str, ...], parse_value: Callable[[Any], Value]
) -> tuple[tuple[tuple[Quantity, Value], ...], Between]:
    """The points and the way between them of the long form."""
    if unknown := [key for key in value if key not in keys]:
        raise ValueError(f"unknown key {unknown[0]!r} beside points; there is {', '.join(keys[1:])}")
    between = value.get("between", "steps")
    if between not in get_args(Between):
        raise ValueError(f"between is one of {', '.join(get_args(Between))}, not {between!r}")
    if not isinstance(value["points"], dict):
        raise ValueError("points is a mapping of positions to values, such as {0%: 128, 40%: 256}")
    points = _points(value["points"], parse_value, ends=between != "steps")
    if between != "steps" and len(points) < 2:
        raise ValueError(f"between: {between} needs at least two points")
    return points, between


def _points(
    value: dict[Any, Any], parse_value: Callable[[Any], Value], ends: bool = False
) -> tuple[tuple[Quantity, Value], ...]:
    """Starts and values; with `ends`, a point may lie at 100%."""
    points = tuple((_position(start), parse_value(item)) for start, item in value.items())
    units = {start.unit for start, _ in points if start.amount}
    if not units <= {"%", "tokens"} or len(units) > 1:
        raise ValueError("positions are percentages or tokens, all of one kind, such as {0%: 128, 40%: 256}")
    starts = [start.amount for start, _ in points]
    if not starts or starts[0] != 0:
        raise ValueError("the first position must be 0")
    if any(b <= a for a, b in itertools.pairwise(starts)):
        raise ValueError("positions must increase")
    if units == {"%"} and (starts[-1] > 100 or (starts[-1] == 100 and not ends)):
        raise ValueError(f"a position must be {'at most' if ends else 'below'} 100%")
    return points


def _stairs(points: tuple[tuple[Quantity, Value], ...], multiple: Any) -> tuple[tuple[Quantity, Value], ...]:
    """The points with the steps of a stair between them; what would begin at 100% is never reached."""
    unit = points[-1][0].unit
    found = [points[0]]
    for (start, low), (end, high) in itertools.pairwise(points):
        ways: list[tuple[float, Any]]
        if isinstance(low, dict):
            ways = _mixture_way(low, cast(dict[str, float], high))
        else:
            ways = _number_way(cast(int, low), cast(int, high), _multiple(multiple, points))
        for share, value in ways:
            amount = start.amount + (end.amount - start.amount) * share
            position = Quantity(amount if unit == "%" else round(amount), unit)
            found.append((position, cast(Value, value)))
    kept = {start.amount: value for start, value in found if unit != "%" or start.amount < 100}
    return tuple((Quantity(amount, unit if amount else "%"), value) for amount, value in kept.items())


def _multiple(asked: Any, points: tuple[tuple[Quantity, Any], ...]) -> int:
    """The height of a stair's steps; by default the smallest of the points."""
    multiple = min(value for _, value in points) if asked is None else asked
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple is a whole number of tokens, at least 1, not {asked!r}")
    for start, value in points:
        if value % multiple:
            raise ValueError(f"{value} at {start} is no multiple of {multiple}; change it, or state multiple")
    return multiple


def _number_way(low: int, high: int, multiple: int) -> list[tuple[float, int]]:
    """(share of the way, value) of each step from one number to another: where the line reaches it."""
    count = abs(high - low) // multiple
    if count > MOST_STAIRS:
        raise ValueError(f"{low} to {high} is {count} steps of {multiple}; take a larger multiple")
    if not count:
        return [(1.0, high)]
    step = multiple if high > low else -multiple
    return [(number / count, low + number * step) for number in range(1, count + 1)]


def _mixture_way(low: dict[str, float], high: dict[str, float]) -> list[tuple[float, dict[str, float]]]:
    """(share of the way, weights) of each step from one mixture to another; each step has the weights of
    the middle of its stretch."""
    low_sum, high_sum = math.fsum(low.values()), math.fsum(high.values())
    ways = []
    for number in range(MIXTURE_STAIRS + 1):
        share = min(1.0, (number + 0.5) / MIXTURE_STAIRS) if number < MIXTURE_STAIRS else 1.0
        weights = {
            name: (1 - share) * low.get(name, 0.0) / low_sum + share * high.get(name, 0.0) / high_sum
            for name in {**low, **high}
        }
        ways.append((number / MIXTURE_STAIRS, {name: part for name, part in weights.items() if part > 0}))
    return ways


def _position(value: Any) -> Quantity:
    """A position as a quantity; a bare number is tokens, and 0 is always 0%."""
    start = Quantity.parse(value)
    return Quantity(start.amount, start.unit or "tokens") if start.amount else Quantity(0, "%")


def _in_tokens(start: Quantity, total: int) -> int:
    """A percentage of `total`, or a number of tokens, in tokens."""
    return round(total * start.amount / 100) if start.unit == "%" else int(start.amount)
