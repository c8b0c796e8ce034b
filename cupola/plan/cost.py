"""What a run takes in energy, carbon and dollars.

    device-hours   devices x hours, whether they compute or wait
    energy         device-hours x (device + host power) x power fraction x PUE
    carbon         energy x the grid's kg of CO2 equivalent per kWh
    dollars        device-hours x a rent, or x what an hour of a device of one's own costs

Conventions, which differ more than the physics do:

- **Power.** A device's rated power (TDP) is a limit. Model cards multiply by it all the same and leave the
  host out: `Power(tdp)` with a fraction of 1 is that. Measured at the wall, hosts and network share in it
  and the mean is below the rating: 76% of a whole node's for 8 H100 at full work (arXiv:2506.14551), 330 W
  per V100 in its node for GPT-3 (arXiv:2104.10350), which is 75% of a DGX-1V's rating. `measured(tdp)` is
  that; its interval is wide, since the power of one run swings between 15% and 85% (OLMo 2,
  arXiv:2503.05804).
- **PUE** is what the building takes over what the computers take; 1 leaves the building out, as BLOOM's
  433 MWh do.
- **Idle** hours, waiting for a repair or a restart, take a share of the rated power.
- **Carbon** is of operation, by the mean of the grid; making the devices is not in it.
- **Hours** that are published are often of the whole programme, with its lost runs: utilisation as low as 18%
  is implied by Llama 3 8B's. They are bounds on a run, not predictions.

Units: watts, hours, MWh, tonnes, dollars. A quantity may be a number or a `Figure` with its interval; results
are figures. Errors are taken as independent.
"""

from dataclasses import dataclass

from cupola.plan.figure import Figure, check

Quantity = float | Figure

HOURS_PER_YEAR = 8766.0

HOST_SHARE = Figure(0.82, 0.46, 1.03)
"""Rated power of a node beyond its devices, over that of its devices: DGX H100 (10.2 kW with 8 x 700 W),
DGX-1V (3.5 kW with 8 x 300 W), DGX A100 (6.5 kW with 8 x 400 W), from their data sheets."""
RATED_FRACTION = Figure(0.76, 0.6, 0.85)
"""Mean power of a node over its rated power while it trains: 76% of 10.2 kW at computationally intensive
work, 82% the most that was seen (arXiv:2506.14551, arXiv:2412.08602)."""
IDLE_FRACTION = Figure(0.3, 0.2, 0.4)
"""Power of a node that waits over its rated power. An assumption."""

GRIDS: dict[str, tuple[float, str]] = {
    "us": (0.385, "United States' mean as Meta's model cards use it; arXiv:2302.13971"),
    "us-2020-cloud": (0.429, "GPT-3's datacentre; arXiv:2104.10350, Table 4"),
    "france": (0.057, "BLOOM, Jean Zay; arXiv:2211.02001"),
    "google-oklahoma": (0.079, "PaLM; arXiv:2204.02311, Appendix B, its tonnes over its MWh"),
}
"""Grids by name: kg of CO2 equivalent per kWh, and where from."""


@dataclass(frozen=True)
class Power:
    """What one device takes.

    Attributes:
        device: its rated power (TDP), watts.
        host: its share of the rated power of host and network, watts.
        fraction: mean power over rated power while it computes.
        idle: mean power over rated power while it waits.
        pue: power usage effectiveness of the building.
    """

    device: Quantity
    host: Quantity = 0.0
    fraction: Quantity = 1.0
    idle: Quantity = IDLE_FRACTION
    pue: Quantity = 1.1

    def __post_init__(self) -> None:
        check("device power in watts", self.device, above=True)
        check("host power in watts", self.host)
        check("power fraction", self.fraction, most=1.5)
        check("idle power fraction", self.idle, most=1)
        check("PUE", self.pue, 1, 3)

    def kilowatts(self, fraction: Quantity = 1.0) -> Figure:
        """At this fraction of the rated power, with the building's share."""
        return Figure.of(self.device).plus(self.host).times(fraction).times(self.pue).times(0.001)

    def energy(self, device_hours: Quantity, idle_device_hours: Quantity = 0.0) -> Figure:
        """MWh of so many device-hours of computing and of waiting."""
        check("device-hours", device_hours)
        check("idle device-hours", idle_device_hours)
        mean = (
            Figure.of(device_hours).times(self.fraction).plus(Figure.of(idle_device_hours).times(self.idle))
        )
        return self.kilowatts().times(mean).times(0.001)


def measured(device_watts: float, pue: Quantity = 1.1) -> Power:
    """A device's power as meters show it, from its TDP alone."""
    check("device power in watts", device_watts, above=True)
    return Power(device_watts, HOST_SHARE.times(device_watts), RATED_FRACTION, pue=pue)


def carbon(energy_mwh: Quantity, kg_per_kwh: Quantity) -> Figure:
    """Tonnes of CO2 equivalent (1 kg/kWh is 1 t/MWh)."""
    check("energy in MWh", energy_mwh)
    check("grid factor in kg per kWh", kg_per_kwh, most=2)
    return Figure.of(energy_mwh).times(kg_per_kwh)


@dataclass(frozen=True)
class Rent:
    """Devices by the hour: `price` in dollars per device-hour, electricity and building included."""

    price: Quantity

    def __post_init__(self) -> None:
        check("rent in dollars per device-hour", self.price)

    def per_device_hour(self) -> Figure:
        """Dollars."""
        return Figure.of(self.price)


@dataclass(frozen=True)
class Purchase:
    """Devices of one's own.

    Attributes:
        capital: dollars for a device with its share of host, network and building.
        power: what it takes.
        electricity: dollars per kWh.
        lifetime: years of service.
        residual: share of the capital that it still fetches after them.
        utilisation: share of the lifetime in which the cluster works for some run; the rest is paid by those.
        upkeep: share of the capital per year for staff, space and repairs.
        interest: yearly cost of capital, as paid on the mean of what is still bound in it.
    """

    capital: Quantity
    power: Power
    electricity: Quantity
    lifetime: Quantity = 4.0
    residual: Quantity = 0.0
    utilisation: Quantity = 0.8
    upkeep: Quantity = 0.0
    interest: Quantity = 0.0

    def __post_init__(self) -> None:
        check("capital in dollars per device", self.capital)
        check("electricity in dollars per kWh", self.electricity)
        check("lifetime in years", self.lifetime, above=True)
        check("residual share", self.residual, most=1)
        check("utilisation", self.utilisation, most=1, above=True)
        check("upkeep per year", self.upkeep)
        check("interest per year", self.interest)

    def capital_per_device_hour(self) -> Figure:
        """Dollars of capital, interest and upkeep for an hour in which a device works for a run."""
        residual = Figure.of(self.residual)
        worn = Figure(1 - residual.value, 1 - residual.high, 1 - residual.low)
        bound = residual.plus(1).times(0.5)
        yearly = worn.over(self.lifetime).plus(bound.times(self.interest)).plus(self.upkeep)
        return yearly.times(self.capital).over(self.utilisation).times(1 / HOURS_PER_YEAR)

    def electricity_per_device_hour(self) -> Figure:
        """Dollars of electricity for an hour of computing, and for its share of the hours without use."""
        used = Figure.of(self.utilisation)
        unused = Figure(1 / used.value - 1, 1 / used.high - 1, 1 / used.low - 1)
        fraction = Figure.of(self.power.fraction).plus(unused.times(self.power.idle))
        return self.power.kilowatts(fraction).times(self.electricity)

    def per_device_hour(self) -> Figure:
        """Dollars, all together."""
        return self.capital_per_device_hour().plus(self.electricity_per_device_hour())


@dataclass(frozen=True)
class Bill:
    """What a run takes: device-hours, MWh, tonnes of CO2 equivalent, dollars."""

    device_hours: Figure
    energy: Figure
    carbon: Figure
    dollars: Figure


def bill(
    devices: int,
    days: Quantity,
    power: Power,
    kg_per_kwh: Quantity,
    price: Rent | Purchase,
    busy: Quantity = 1.0,
) -> Bill:
    """What a run takes.

    Args:
        devices: that it holds all the time.
        days: from its first step to its last, interruptions included.
        power: of a device.
        kg_per_kwh: of the grid.
        price: rented or bought.
        busy: share of the time in which the devices compute, lost work and all; in the rest they wait.

    Raises:
        InputError: fewer than one device, negative time or prices, a share above 1.
    """
    check("devices", devices, 1)
    check("days", days)
    check("busy share", busy, most=1)
    hours = Figure.of(days).times(24 * devices)
    share = Figure.of(busy)
    waiting = Figure(1 - share.value, 1 - share.high, 1 - share.low)
    fraction = share.times(power.fraction).plus(waiting.times(power.idle))
    energy = power.kilowatts(fraction).times(hours).times(0.001)
    return Bill(hours, energy, carbon(energy, kg_per_kwh), hours.times(price.per_device_hour()))
