"""Published runs: the rows of a file, read so that none is lost.

A file is JSON, `{"rows": [...]}`; a row is one published run or measurement. Its keys: name, group, source,
verified; params, layers, d_model, heads, kv_heads, ffn, vocab, tokens, seq, batch (rows a step); hardware,
n_devices, tp, pp, dp, cp, precision; `metrics`, the published values with units in their names; `extra`, what
else is known. Whatever isn't known is null or left out. `published.json` is one, with the sources.
"""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from cupola.errors import InputError

PUBLISHED = Path(__file__).with_name("published.json")
NUMBERS = ("params", "layers", "d_model", "heads", "kv_heads", "ffn", "vocab", "tokens", "seq", "batch")
LAYOUT = ("n_devices", "tp", "pp", "dp", "cp")


@dataclass(frozen=True)
class Row:
    """A published run.

    Attributes:
        facts: the row's keys that are no metric; numbers only where `NUMBERS` and `LAYOUT` say so.
        metrics: published values; those that are no number are in `odd`.
        odd: what could not be read, as lines.
    """

    name: str
    group: str
    facts: dict[str, Any]
    metrics: dict[str, float]
    extra: dict[str, Any]
    odd: dict[str, str]

    def whole(self, key: str) -> int | None:
        """One of the sizes, None where it isn't known."""
        value = self.facts.get(key)
        return None if value is None else round(value)

    @property
    def named(self) -> str:
        """Its name and group, in lower case: what model it is."""
        return f"{self.name} {self.group}".lower()

    @property
    def words(self) -> str:
        """Also what is said of it in words; that may speak of other models."""
        return " ".join([self.named, *map(_text, self.extra.values())]).lower()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def read(path: Path = PUBLISHED) -> list[Row]:
    """The rows of a file.

    Raises:
        InputError: the file can't be read, or has no rows.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} can't be read: {getattr(fault, 'strerror', None) or fault}") from fault
    except json.JSONDecodeError as fault:
        raise InputError(f"{path} is no JSON: line {fault.lineno}, {fault.msg}") from fault
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise InputError(f'{path} has no rows; {{"rows": [...]}} is expected')
    return [_row(number, row) for number, row in enumerate(rows, 1)]


def _row(number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        return Row(f"row {number}", "unreadable", {}, {}, {}, {"row": "is no object"})
    odd: dict[str, str] = {}
    facts = {key: value for key, value in row.items() if key not in ("metrics", "extra")}
    for key in (*NUMBERS, *LAYOUT):
        if facts.get(key) is not None and not _is_number(facts[key]):
            odd[key] = f"{key} is {facts.pop(key)!r}, no number above 0"
    metrics = row.get("metrics") or {}
    if not isinstance(metrics, dict):
        odd["metrics"], metrics = "metrics are no object", {}
    values = {}
    for key, value in metrics.items():
        if _is_number(value):
            values[key] = value
        elif value is not None:
            odd[key] = f"{key} is {value!r}, no number above 0"
    extra = row.get("extra")
    return Row(
        str(row.get("name") or f"row {number}"),
        str(row.get("group") or "no group"),
        facts,
        values,
        extra if isinstance(extra, dict) else {},
        odd,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def rounding(value: float) -> float:
    """What one unit of the last printed digit is of the value: 0.01 for 1.0, 1e-3 for 415.3, 0.004 for
    2.25e20.

    Tables cut off as often as they round, so a printed figure is uncertain by a whole unit. A number below
    1,000 is taken to be printed to the unit at least: 410 has three digits.
    """
    unit = 10.0 ** int(Decimal(repr(value)).normalize().as_tuple().exponent)
    return (min(unit, 1.0) if value < 1e3 else unit) / value
