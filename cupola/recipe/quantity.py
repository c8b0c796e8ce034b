"""Amounts with a unit, as people write them: "20M tokens", "1000 steps", "2 epochs", "5%", 4096.

A field says which units make sense for it and which one a bare number has. A percentage is of the
stage's horizon.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

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
