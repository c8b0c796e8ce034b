"""How single values of a recipe may be written: amounts, schedules, mixtures, bounded numbers, paths.

Each is an annotated type; the blocks of `cupola.recipe.schema` are made of them.
"""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from cupola.recipe.curve import Curve, Piecewise
from cupola.recipe.quantity import Quantity
from cupola.recipe.variables import escaped, unescaped


def _positive_integer(value: Any) -> int:
    quantity = Quantity.parse(value)
    if quantity.unit not in ("", "tokens") or not isinstance(quantity.amount, int) or quantity.amount < 1:
        raise ValueError(f"a whole number of tokens, at least 1, is expected, not {value!r}")
    return quantity.amount


def _weights(value: Any) -> dict[str, float]:
    if isinstance(value, str):
        value = {value: 1}
    if not isinstance(value, dict) or not value:
        raise ValueError("a mapping of sources to weights is expected, such as {speeches: 0.6, manuals: 0.4}")
    for source, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {source!r} must be a number above 0, not {weight!r}")
    return {str(source): float(weight) for source, weight in value.items()}


def _mixture(value: Any) -> "Piecewise[dict[str, float]]":
    if isinstance(value, Piecewise):
        return value
    changing = isinstance(value, dict) and (
        isinstance(value.get("points"), dict) or all(isinstance(v, dict) for v in value.values())
    )
    if changing and value:
        return Piecewise.parse(value, _weights)
    return Piecewise(((Quantity(0, "%"), _weights(value)),))


def _curve(low: float, high: float) -> BeforeValidator:
    """Numbers from `low` to below `high`."""

    def number(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
            limit = f" and below {high:g}" if high < math.inf else ""
            raise ValueError(f"a number of at least {low:g}{limit} is expected, not {value!r}")
        return float(value)

    return BeforeValidator(lambda value: Curve.parse(value, number))


def _decay(value: Any) -> Any:
    return value if isinstance(value, str) else Curve.parse(value, _share_of_peak)


def _share_of_peak(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a share of the peak, from 0 to 1, is expected, not {value!r}")
    return float(value)


def _units(*units: str, positive: bool = True, words: tuple[str, ...] = ()) -> BeforeValidator:
    """Quantities in some units, the first one being a bare number's; or one of some words."""

    def check(value: Any) -> Quantity | str:
        if isinstance(value, str) and words:
            if value in words:
                return value
            if not any(letter.isdigit() for letter in value):
                raise ValueError(
                    f"an interval such as 2% or 50 steps, or {' or '.join(words)}, not {value!r}"
                )
        quantity = Quantity.parse(value)
        if quantity.unit == "":
            quantity = Quantity(quantity.amount, units[0])
        if quantity.unit not in units:
            raise ValueError(
                f"an amount in {', '.join(units[:-1])} or {units[-1]} is expected, not {value!r}"
            )
        if quantity.unit in ("tokens", "steps") and not isinstance(quantity.amount, int):
            raise ValueError(f"a whole number of {quantity.unit} is expected, not {quantity.amount}")
        if positive and quantity.amount == 0:
            raise ValueError("must be above 0")
        return quantity

    return BeforeValidator(check)


_PIECEWISE_SCHEMA = WithJsonSchema({"anyOf": [{"type": ["integer", "string"]}, {"type": "object"}]})
_CURVE_SCHEMA = WithJsonSchema({"anyOf": [{"type": ["number"]}, {"type": "object"}]})
_MIXTURE_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})
_DUMP = PlainSerializer(lambda value: value if isinstance(value, str) else value.dump())

NewtonSchulz = Literal["polar_express", "quintic"]
Lengths = Annotated[
    Piecewise[int], BeforeValidator(lambda v: Piecewise.parse(v, _positive_integer)), _DUMP, _PIECEWISE_SCHEMA
]
Mixture = Annotated[Piecewise[dict[str, float]], BeforeValidator(_mixture), _DUMP, _MIXTURE_SCHEMA]
LARGEST_WEIGHT = 1e6
"""Of learning rates, decays and weights: beyond it nothing trains, and fp32 ends."""
Positive = Annotated[Curve, _curve(0, LARGEST_WEIGHT), _DUMP, _CURVE_SCHEMA]
ShareCurve = Annotated[Curve, _curve(0, 1), _DUMP, _CURVE_SCHEMA]
Shape = Literal["cosine", "linear", "1-sqrt", "inverse_sqrt", "constant"]
Decay = Annotated[
    Shape | Curve,
    BeforeValidator(_decay),
    _DUMP,
    WithJsonSchema({"anyOf": [{"enum": list(get_args(Shape))}, {"type": "object"}]}),
]
Weights = Annotated[dict[str, float], BeforeValidator(_weights), _MIXTURE_SCHEMA]
Horizon = Annotated[Quantity, _units("tokens", "steps", "epochs")]
Warmup = Annotated[Quantity, _units("tokens", "steps", "%", positive=False)]
Interval = Annotated[Quantity, _units("tokens", "steps", "%")]
Looks = Annotated[Quantity | Literal["auto", "off"], _units("tokens", "steps", "%", words=("auto", "off"))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
WholePath = Annotated[str, AfterValidator(unescaped), PlainSerializer(escaped)]
"""A whole path, once a recipe is loaded."""
