"""A number that is not known exactly: a value with its 90% interval, and how such numbers combine.

Factors are taken as independent and their errors as relative ones, so that the interval of a product is found
in logarithms: distances from the value add as squares, above and below it apart. For a sum, distances add as
squares without the logarithm. Neither assumes a symmetric interval. A bare number is a `Figure` without
doubt.
"""

import math
from dataclasses import dataclass

from cupola.errors import InputError


@dataclass(frozen=True)
class Figure:
    """A positive number, or zero, and the interval that holds it with 90% probability.

    Attributes:
        value: the best guess.
        low: 5% of the probability lies below.
        high: 5% of it lies above.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: "float | Figure") -> "Figure":
        """The figure itself, or a number known exactly."""
        return value if isinstance(value, Figure) else cls(value, value, value)

    def times(self, other: "float | Figure") -> "Figure":
        """The product of two independent figures."""
        other = Figure.of(other)
        value = self.value * other.value
        if value == 0:
            return Figure(0, 0, self.high * other.high)
        if value == math.inf:
            return Figure(value, self.low * other.low, value)
        down = math.hypot(_ratio(self.value, self.low), _ratio(other.value, other.low))
        up = math.hypot(_ratio(self.high, self.value), _ratio(other.high, other.value))
        return Figure(value, value * math.exp(-down), value * math.exp(up))

    def plus(self, other: "float | Figure") -> "Figure":
        """The sum of two independent figures."""
        other = Figure.of(other)
        value = self.value + other.value
        down = math.hypot(self.value - self.low, other.value - other.low)
        up = math.hypot(self.high - self.value, other.high - other.value)
        return Figure(value, value - down, value + up)

    def inverse(self) -> "Figure":
        """One divided by it; infinite at the high end where the interval begins at zero."""
        return Figure(_reciprocal(self.value), _reciprocal(self.high), _reciprocal(self.low))

    def over(self, other: "float | Figure") -> "Figure":
        """The quotient of two independent figures."""
        return self.times(Figure.of(other).inverse())


def _ratio(upper: float, lower: float) -> float:
    if upper == lower:
        return 0.0
    return math.log(upper / lower) if lower > 0 else math.inf


def _reciprocal(value: float) -> float:
    return 1 / value if value > 0 else math.inf


def check(
    what: str, value: float | Figure, least: float = 0, most: float = math.inf, above: bool = False
) -> None:
    """That a number, with its interval, lies in a range.

    Args:
        what: its name and unit, which begin the error's line.
        value: the number.
        least, most: the range; both belong to it.
        above: that `least` itself does not.

    Raises:
        InputError: it does not, or it is no finite number, or the interval does not hold the value.
    """
    figure = Figure.of(value)
    parts = (figure.low, figure.value, figure.high)
    if not all(math.isfinite(part) for part in parts):
        raise InputError(f"{what}: {figure.value} is not a finite number")
    if not figure.low <= figure.value <= figure.high:
        raise InputError(
            f"{what}: {figure.value:g} lies outside of its own interval, {figure.low:g} to {figure.high:g}"
        )
    for part in parts:
        if part < least or part > most or (above and part == least):
            lower = f"above {least:g}" if above else f"at least {least:g}"
            upper = f" and at most {most:g}" if most < math.inf else ""
            raise InputError(f"{what}: {part:g} can't be; it must be {lower}{upper}")
