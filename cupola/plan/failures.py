"""How often a run is interrupted, by cause, from the counts that others published.

`failures.yaml` holds the counts with their sources. Three kinds add up, each with its own law of growth:

- **hardware** grows with devices: each is one more part that may break.
- **software** grows with devices as well. A bug alone would strike a run of any size alike, but what ends
  long runs are races, deadlocks and timeouts, and every rank is one more chance for them. The counts say so:
  63 in 54 days on 16,384 devices (Llama 3) and 3 in 115 days on 384 (BLOOM) are 1.17 and 0.026 a day, 45 to
  1, where devices are 43 to 1: an exponent of 1.01, with a standard error of 0.16 from counting alone. They
  are two runs with different code, but a constant number a day is out of the question. Failures of all
  causes on Meta's research clusters agree (arXiv:2410.21680, as cited): 47.7 days apart for jobs on 8
  devices, 7.9 hours on 1,024, an exponent of 1.03.
- **operator** is a number a day whatever the size: maintenance and changes of settings follow the calendar
  and the people. Llama 3's is 0.87 a day and BLOOM's 0.08; what an operator costs is little, as the run
  saves first.

The rate is events over exposure. Its interval is that of a Poisson count with Jeffreys' prior: 5% and 95% of
Gamma(count + 1/2, exposure). It says how well the rate of *that* run is known. Another cluster differs by
much more (per device, OPT's rate is four times Llama 3's, that of Meta's research jobs six times):
`Rates.cluster` is that spread. Units: days, interruptions per day, hours for the mean time to interruption.
"""

import functools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cupola.errors import InputError
from cupola.plan.figure import Figure, check

Kind = Literal["hardware", "software", "operator"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROWS_WITH_DEVICES: tuple[Kind, ...] = ("hardware", "software")

COUNTS = Path(__file__).with_suffix(".yaml")
DEFAULT_RUN = "llama3"
"""The most counts, the newest hardware, and all three kinds."""
SCALED_NODE = 8
"""Devices of the node that rates between clusters are stated for."""


@dataclass(frozen=True)
class Run:
    """What interrupted one published run.

    Attributes:
        devices, days: the exposure.
        node: devices of a node, all of which leave when one breaks.
        counts: interruptions by kind and cause; a kind that was not published is missing.
    """

    name: str
    title: str
    source: str
    devices: int
    node: int
    days: float
    counts: Mapping[str, Mapping[str, int]]

    def count(self, kind: Kind) -> int | None:
        """Interruptions of one kind, or None where they were not published."""
        return sum(self.counts[kind].values()) if kind in self.counts else None

    def rate(self, kind: Kind, devices: int) -> Figure | None:
        """Interruptions of one kind per day of a run on so many devices; None where not published."""
        count = self.count(kind)
        if count is None:
            return None
        check("devices", devices, 1)
        return poisson_rate(count, self.days).times(_growth(kind, devices, self.devices))

    def by_cause(self, devices: int) -> dict[str, Figure]:
        """Interruptions per day of a run on so many devices, by cause."""
        check("devices", devices, 1)
        return {
            cause: poisson_rate(count, self.days).times(_growth(kind, devices, self.devices))
            for kind in KINDS
            for cause, count in self.counts.get(kind, {}).items()
        }

    @property
    def node_rate(self) -> float:
        """Unplanned interruptions in 1,000 days of an 8-device node."""
        unplanned = sum(self.count(kind) or 0 for kind in GROWS_WITH_DEVICES)
        return 1000 * unplanned / self.days / (self.devices / SCALED_NODE)


@dataclass(frozen=True)
class Published:
    """Every run of a file of counts, and rates of further clusters per 1,000 days of an 8-device node."""

    runs: Mapping[str, Run]
    node_rates: Mapping[str, float]

    def run(self, name: str) -> Run:
        """A run by name.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.runs:
            raise InputError(f"failures of {name!r}: no such run; there are {', '.join(self.runs)}")
        return self.runs[name]

    @property
    def spread(self) -> float:
        """How clusters differ: the standard deviation of the logarithms of their rates per device."""
        rates = [run.node_rate for run in self.runs.values()] + list(self.node_rates.values())
        rates = [rate for rate in rates if rate > 0]
        return statistics.stdev(map(math.log, rates)) if len(rates) > 1 else 0.0

    @property
    def elsewhere(self) -> Figure:
        """By what factor the rate of a cluster that was not counted may differ: 90% of a normal law in
        logarithms.

        Its distance from the mean of n clusters has the variance spread² (1 + 1/n).
        """
        clusters = len(self.runs) + len(self.node_rates)
        factor = math.exp(Z90 * self.spread * math.sqrt(1 + 1 / clusters))
        return Figure(1, 1 / factor, factor)


@dataclass(frozen=True)
class Rates:
    """Interruptions per day of a run, by kind.

    Attributes:
        hardware, software, operator: each with the interval that its count gives.
        cluster: a factor of value 1 on hardware and software together, for what differs between clusters.
    """

    hardware: Figure
    software: Figure
    operator: Figure
    cluster: Figure

    @property
    def unplanned(self) -> Figure:
        """Hardware and software, which come without a warning."""
        return self.hardware.plus(self.software).times(self.cluster)

    @property
    def mtti_hours(self) -> Figure:
        """Mean time to an unplanned interruption, in hours; infinite where nothing fails."""
        return Figure.of(24).over(self.unplanned)

    @property
    def log_spread(self) -> float:
        """The standard deviation of the logarithm of `cluster`."""
        return math.log(self.cluster.high) / Z90


Z90 = statistics.NormalDist().inv_cdf(0.95)


def rates(devices: int, name: str = DEFAULT_RUN, counts: Path = COUNTS, elsewhere: bool = True) -> Rates:
    """Interruptions per day of a run on so many devices.

    Args:
        devices: of the run.
        name: the published run whose rates are taken; a kind that it lacks is taken from Llama 3's counts.
        counts: a file in the format of `failures.yaml`.
        elsewhere: on a cluster that was not counted; else on the very cluster of that run.

    Raises:
        InputError: no such run, fewer than one device, a file that can't be read.
    """
    table = published(counts)
    run = table.run(name)

    def of(kind: Kind) -> Figure:
        rate = run.rate(kind, devices) or published().run(DEFAULT_RUN).rate(kind, devices)
        assert rate is not None, f"{DEFAULT_RUN} has all kinds"
        return rate

    factor = table.elsewhere if elsewhere else Figure.of(1)
    return Rates(of("hardware"), of("software"), of("operator"), factor)


def _growth(kind: Kind, devices: int, counted: int) -> float:
    return devices / counted if kind in GROWS_WITH_DEVICES else 1.0


def poisson_rate(count: int, exposure: float, level: float = 0.9) -> Figure:
    """The rate of a Poisson process of which `count` events were seen in `exposure`.

    Args:
        count: events.
        exposure: time, or devices times time, in which they were counted.
        level: probability of the interval.

    Returns:
        Events per unit of exposure: count / exposure, and the equal-tailed interval of Gamma(count + 1/2),
        which begins at 0 if there were none.
    """
    tail = (1 - level) / 2
    low = gamma_quantile(count + 0.5, tail) if count else 0.0
    return Figure(count / exposure, low / exposure, gamma_quantile(count + 0.5, 1 - tail) / exposure)


def gamma_quantile(shape: float, probability: float) -> float:
    """Where the distribution function of Gamma(shape, 1) reaches a probability; by bisection."""
    low, high = 0.0, shape + 40 * math.sqrt(shape) + 40
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _gamma_distribution(shape, middle) < probability else (low, middle)
    return (low + high) / 2


def _gamma_distribution(shape: float, x: float) -> float:
    """The regularised lower incomplete gamma function P(shape, x), by the series of DLMF 8.11.4."""
    if x <= 0:
        return 0.0
    term = total = 1 / shape
    n = shape
    while term > 1e-16 * total:
        n += 1
        term *= x / n
        total += term
    return min(1.0, total * math.exp(shape * math.log(x) - x - math.lgamma(shape)))


@functools.cache
def published(path: Path = COUNTS) -> Published:
    """Read a file of counts.

    Raises:
        InputError: it can't be read, or is not in the format of `failures.yaml`.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: can't be read as counts of failures ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(document, dict) or not isinstance(document.get("runs"), dict):
        raise InputError(f"{path}: must hold `runs:`, as {COUNTS.name} of Cupola does")
    nodes = document.get("nodes") or []
    for node in nodes if isinstance(nodes, list) else [nodes]:
        if (
            not isinstance(node, dict)
            or "name" not in node
            or not _number(node.get("rate"))
            or node["rate"] <= 0
        ):
            raise InputError(f"{path}: nodes: each must have a name and a rate above 0, not {node!r}")
    return Published(
        {name: _run(f"{path}: runs.{name}", name, record) for name, record in document["runs"].items()},
        {node["name"]: float(node["rate"]) for node in nodes},
    )


def _run(where: str, name: str, record: Any) -> Run:
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a mapping with devices, days, and counts by kind")
    known = {"title", "source", "devices", "node", "days", *KINDS}
    if unknown := [key for key in record if key not in known]:
        raise InputError(f"{where}.{unknown[0]}: no such entry; there are {', '.join(sorted(known))}")
    for key in ("devices", "days"):
        if not _number(record.get(key)) or record[key] <= 0:
            raise InputError(f"{where}.{key}: must be a number above 0, not {record.get(key)!r}")
    for kind in KINDS:
        causes = record.get(kind, {})
        if not isinstance(causes, dict):
            raise InputError(f"{where}.{kind}: must be a mapping of causes to counts")
        for cause, count in causes.items():
            if not _number(count) or count < 0 or count != int(count):
                raise InputError(
                    f"{where}.{kind}.{cause}: must be a whole number of at least 0, not {count!r}"
                )
    return Run(
        name,
        str(record.get("title", name)),
        str(record.get("source", "")),
        int(record["devices"]),
        int(record.get("node", SCALED_NODE)),
        float(record["days"]),
        {kind: record[kind] for kind in KINDS if kind in record},
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
