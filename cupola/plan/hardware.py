"""What devices have and cost: records that anyone can edit, and how a run names them.

`catalogue.yaml` has the shipped ones, with the source of each. A file of one's own, in the same format, adds
records or changes values of those that are there (`--hardware FILE`). Prices and latencies are assumptions
with a date; everything else is from data sheets. Units inside: bytes, bytes/s, FLOP/s, seconds, watts,
dollars; in a file with their prefixes, such as `79.6 GiB`, `3.35 TB/s`, `989 TFLOP/s`, `3 us`.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from cupola.errors import InputError
from cupola.machine import usable_cores
from cupola.plan.host import measured
from cupola.recipe.document import Node, read_document, read_plain, shown
from cupola.recipe.strict import Strict
from cupola.recipe.structure import did_you_mean

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
GIB = 2.0**30
MOST_DEVICES = 10_000_000

PREFIXES = {
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": GIB,
    "Ti": 2.0**40,
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"]


def _amount(unit: str, example: str) -> BeforeValidator:
    """A number, or a text with the unit and a prefix."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(rf"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([A-Za-z]*){re.escape(unit)}\s*", value)
        if not match or match[2] not in PREFIXES:
            raise ValueError(f"{value!r} is no amount; write it as {example}")
        return float(match[1]) * PREFIXES[match[2]]

    return BeforeValidator(read)


def _date(value: str) -> str:
    if not re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", value):
        raise ValueError(f"{value!r} is no date; write it as 2026-05")
    return value


Above = Field(gt=0)
Bytes = Annotated[float, _amount("B", "79.6 GiB"), Above]
BytesPerSecond = Annotated[float, _amount("B/s", "3.35 TB/s"), Above]
FlopsPerSecond = Annotated[float, _amount("FLOP/s", "989 TFLOP/s"), Above]
Seconds = Annotated[float, _amount("s", "3 us"), Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

USUAL = 0.75
"""Share of the peak that large products reach where a record has no figure."""


class Hardware(Strict):
    """One device, with its share of links and network."""

    name: str
    """What it is called here."""
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    """Other names of it."""
    memory: Bytes
    """What a program may use, in bytes."""
    bandwidth: BytesPerSecond
    """Of the memory."""
    peak: dict[Precision, FlopsPerSecond] = Field(min_length=1)
    """Dense matrix products, by precision."""
    attainable: dict[Precision, Share] = Field(default_factory=dict)
    """Share of the peak that large products reach in training, within the device's power."""
    attention: dict[Literal["flash1", "flash2", "flash3", "flash4"], Share] = Field(default_factory=dict)
    """Share of the 16-bit peak that fused attention kernels reach, by generation: heads of 128, long rows,
    forward and backward, counted over the causal half."""
    units: int = Field(default=128, ge=1)
    """Cores that work on a tile of a product each."""
    domain: int = Field(ge=1)
    """Devices that fast links connect."""
    link: BytesPerSecond
    """What one device sends over them."""
    network: BytesPerSecond
    """What one device sends beyond them."""
    link_latency: Seconds
    """Of a message over fast links."""
    network_latency: Seconds
    """Of a message over the network."""
    watts: float = Above
    """Rated power."""
    host_share: float = Field(ge=0, le=5)
    """Rated power of host and network beside it, as a share of its own."""
    rent: float = Above
    """Dollars an hour."""
    price: float = Above
    """Dollars to buy one."""
    priced: Annotated[str, BeforeValidator(str), AfterValidator(_date)]
    """When rent and price held."""
    sources: dict[str, str] = Field(min_length=1)
    """Where the values are from."""

    def flops(self, precision: Precision) -> float:
        """Peak FLOP/s, of the next wider precision where it has none of that.

        Raises:
            InputError: it computes in nothing so wide.
        """
        return self.peak[self._has(precision)]

    def attained(self, precision: Precision) -> float:
        """Share of that peak which large products reach; that of bf16 where it has no figure of its own."""
        own = self._has(precision)
        return self.attainable.get(own, self.attainable.get("bf16", USUAL))

    @property
    def guessed(self) -> bool:
        """Whether its speed is nobody's figure: of the CPU here, until it is measured."""
        return self.name == "cpu" and "assumption" in self.sources.get("sheet", "")

    def _has(self, precision: Precision) -> Precision:
        wider: tuple[Precision, ...] = ("fp4", "fp8", "bf16", "fp16", "tf32", "fp32")
        for one in wider[wider.index(precision) :]:
            if one in self.peak:
                return one
        raise InputError(f"{self.name} has no peak for {precision}; it has {', '.join(self.peak)}")


def catalogue(path: Path | None = None) -> dict[str, Hardware]:
    """Every record, by name.

    Args:
        path: a file that adds to the shipped ones, or changes them.

    Raises:
        InputError: one line with file and line.
    """
    if path is None:
        return dict(_shipped())
    found = dict(_shipped())
    for name, node in read_document(path, "a file of devices", "h100: {rent: 2}").value.items():
        where = f"{node.where}: {name}"
        if not isinstance(node.value, dict):
            raise InputError(f"{where}: a mapping is expected, such as {{base: h100, rent: 2.10}}")
        below = _below(name, node, found, where)
        record = _record(str(below.get("name", name)), below | node.plain(), node, where)
        found[record.name] = record
    _refuse_doubles(found.values(), shown(path))
    return found


def _below(name: str, node: Node, found: Mapping[str, Hardware], where: str) -> dict[str, Any]:
    """What a record builds on: that of its `base`, or the one whose values it changes."""
    base = node.value.pop("base", None)
    if base is None:
        known = _find(name, found)
        return {} if known is None else known.model_dump()
    known = _find(str(base.value), found)
    if known is None:
        raise InputError(f"{where}.base: {_unknown(str(base.value), found)}")
    return known.model_dump() | {"name": name, "aliases": ()}


@functools.cache
def _shipped() -> dict[str, Hardware]:
    records = read_plain(CATALOGUE.read_text(encoding="utf-8"))
    found = {name: Hardware.model_validate({"name": name} | record) for name, record in records.items()}
    _refuse_doubles(found.values(), CATALOGUE.name)
    return found


def _record(name: str, values: dict[str, Any], node: Node, where: str) -> Hardware:
    try:
        return Hardware.model_validate(values | {"name": name})
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: item["type"] == "missing")
        key = str(first["loc"][0])
        line = node.value[key].where if key in node.value else node.where
        raise InputError(f"{line}: {where.rpartition(': ')[2]}.{_fault(first, key)}") from None


def _fault(first: Any, key: str) -> str:
    path = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        close = did_you_mean(key, Hardware.model_fields)
        return f"{path}: unknown key; {f'did you mean {close}?' if close else 'there is none of that name'}"
    if first["type"] == "missing":
        return f"{path}: is missing; state it, or take it over with `base: h100`"
    return f"{path}: {first['msg'].removeprefix('Value error, ')}"


def _refuse_doubles(records: Iterable[Hardware], file: str) -> None:
    seen: dict[str, str] = {}
    for record in records:
        for name in (record.name, *record.aliases):
            if seen.setdefault(name.lower(), record.name) != record.name:
                raise InputError(f"{file}: {name} names both {seen[name.lower()]} and {record.name}")


def _find(name: str, known: Mapping[str, Hardware]) -> Hardware | None:
    wanted = name.strip().lower().replace("_", "-")
    for record in known.values():
        if wanted in (record.name.lower(), *(alias.lower() for alias in record.aliases)):
            return record
    return None


def _unknown(name: str, known: Mapping[str, Hardware]) -> str:
    names = [name for record in known.values() for name in (record.name, *record.aliases)]
    close = did_you_mean(name.lower(), names)
    hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
    return f"no device is called {name!r}; {hint}"


def parse(text: str, known: Mapping[str, Hardware] | None = None) -> tuple[Hardware, int]:
    """`h100:1024` -> the record and how many; a name alone is one device.

    Args:
        known: the records; by default the shipped ones.

    Raises:
        InputError: no such device, or no positive number.
    """
    known = catalogue() if known is None else known
    name, colon, number = text.partition(":")
    record = _find(name, known)
    if record is None:
        raise InputError(_unknown(name, known))
    if not colon:
        return _here(record), 1
    digits = number.strip().replace(",", "").replace("_", "")
    count = int(digits) if digits.isdecimal() and len(digits) < 12 else 0
    if not 1 <= count <= MOST_DEVICES:
        raise InputError(
            f"{text}: {number!r} devices can't be; a whole number from 1 to {MOST_DEVICES:,} is expected,"
            f" such as {record.name}:8"
        )
    return _here(record), count


def _here(record: Hardware) -> Hardware:
    """The shipped record `cpu` with this machine's memory and cores, and its speed where that has been
    measured (`plan.host`); any other as it is."""
    if record is not _shipped()["cpu"]:
        return record
    import psutil

    here = {"memory": float(psutil.virtual_memory().total)}
    if (host := measured()) is not None:
        peak, sources = {"fp32": host.fp32, "bf16": host.bf16}, {**record.sources, "sheet": host.source}
        return record.model_copy(
            update={
                **here,
                "peak": peak,
                "attainable": dict.fromkeys(peak, 1.0),  # large products are what was measured
                "bandwidth": host.bandwidth,
                "sources": sources,
            }
        )
    peak = {name: value / 2 * usable_cores() for name, value in record.peak.items()}
    return record.model_copy(update={**here, "peak": peak})
