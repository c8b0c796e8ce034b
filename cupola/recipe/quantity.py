"""Amounts with a unit, as people write them: "20M tokens", "1000 steps", "2 epochs", "5%", 4096.

A field says which units make sense for it and which one a bare number has. A percentage is of the
stage's horizon.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

UNITS = ("tokens", "steps", "items", "epochs", "%")
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
PATTERN = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?)\s*([kKMBGT]?)\s*([a-z]+|%)?\s*$"
)
LARGEST = 10**18
SINGULAR = {"token": "tokens", "step": "steps", "item": "items", "epoch": "epochs", "percent": "%"}


@dataclass(frozen=True)
class Quantity:
    """An amount and its unit (one of `UNITS`, or "" where the field's own unit is meant)."""

    amount: float
    unit: str = ""

    @classmethod
    def parse(cls, value: Any) -> "Quantity":
        """Read a number or a text such as "20M tokens".

        Raises:
            ValueError: says what was expected.
        """
        if isinstance(value, Quantity):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(
                f'an amount such as "20M tokens", "1000 steps" or "5%" is expected, not {value!r}'
            )
        if isinstance(value, int | float):
            amount, unit = Decimal(value), ""
        else:
            match = PATTERN.match(value)
            if match is None:
                raise ValueError(
                    f'{value!r} is not an amount; write a number and a unit, such as "20M tokens" or "5%"'
                )
            suffix = {"K": "k", "G": "B"}.get(match[2], match[2])
            amount = Decimal(match[1].replace("_", "")) * SUFFIXES[suffix]  # exact: 1.005M is whole
            unit = SINGULAR.get(match[3] or "", match[3] or "")
        if unit not in ("", *UNITS):
            raise ValueError(f"unknown unit {unit!r}; units are {', '.join(UNITS)}")
        if not amount.is_finite() or not 0 <= amount <= LARGEST:
            raise ValueError(f"an amount is a number from 0 to 10^18, not {value!r}")
        return cls(int(amount) if amount == int(amount) else float(amount), unit)

    def __str__(self) -> str:
        return f"{self.amount}%" if self.unit == "%" else f"{self.amount} {self.unit}".rstrip()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda q: q.amount if q.unit == "" else str(q)
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\s*[0-9]"}]}


Value = TypeVar("Value")


@dataclass(frozen=True)
class Piecewise(Generic[Value]):
    """A value that changes at stated positions of the stage: `{0%: 128, 40%: 256}`, or one value.

    `steps` holds (start, value) in the order written; the first starts at 0. A start is a percentage of
    the stage or a number of tokens.
    """

    steps: tuple[tuple[Quantity, Value], ...]

    @classmethod
    def parse(cls, value: Any, parse_value: Callable[[Any], Value]) -> "Piecewise[Value]":
        """Read one value or a mapping of starts to values.

        Raises:
            ValueError: no start at 0, starts out of order, mixed units.
        """
        if isinstance(value, Piecewise):
            return value
        if not isinstance(value, dict):
            return cls(((Quantity(0, "%"), parse_value(value)),))
        steps = tuple((_position(start), parse_value(v)) for start, v in value.items())
        units = {start.unit for start, _ in steps if start.amount}
        if not units <= {"%", "tokens"} or len(units) > 1:
            raise ValueError(
                "positions are percentages or tokens, all of one kind, such as {0%: 128, 40%: 256}"
            )
        starts = [start.amount for start, _ in steps]
        if not starts or starts[0] != 0:
            raise ValueError("the first position must be 0")
        if any(b <= a for a, b in itertools.pairwise(starts)):
            raise ValueError("positions must increase")
        if units == {"%"} and starts[-1] >= 100:
            raise ValueError("a position must be below 100%")
        return cls(steps)

    def starts(self, total: int) -> list[tuple[int, Value]]:
        """(position in tokens, value) of every change, the first at 0."""
        return [(_in_tokens(start, total), value) for start, value in self.steps]

    @property
    def values(self) -> list[Value]:
        """Every value that occurs, in order."""
        return [value for _, value in self.steps]

    def dump(self) -> Any:
        """As it is written in a recipe."""
        if len(self.steps) == 1:
            return self.steps[0][1]
        return {str(start): value for start, value in self.steps}


def _position(value: Any) -> Quantity:
    """A position as a quantity; a bare number is tokens, and 0 is always 0%."""
    start = Quantity.parse(value)
    return Quantity(start.amount, start.unit or "tokens") if start.amount else Quantity(0, "%")


def _in_tokens(start: Quantity, total: int) -> int:
    """A percentage of `total`, or a number of tokens, in tokens."""
    return round(total * start.amount / 100) if start.unit == "%" else int(start.amount)
