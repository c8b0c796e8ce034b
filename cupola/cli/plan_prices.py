"""What the options of `cupola plan` say of interruptions, power and money."""

from typing import TYPE_CHECKING, Any

from cupola.errors import InputError

if TYPE_CHECKING:
    from cupola.plan.campaign import Settings
    from cupola.plan.cost import Power, Purchase, Rent
    from cupola.plan.hardware import Hardware

SAVING = ("stall", "restart", "interval", "spares", "simulate", "seed", "show_what_if")
MONEY = ("pue", "power_fraction", "grid", "rent", "buy", "capital", "electricity", "lifetime")
"""The options, as functions take them."""
HOST_PRICE = 1.4
"""Price of a device with its share of host, network and building over its own. An assumption."""
DOUBT = (0.7, 1.4)
"""Interval of a price that is assumed, as factors."""
ELECTRICITY, LIFETIME = 0.08, 4.0
"""Dollars for a kWh, years of service; assumptions."""


def settings_of(options: dict[str, Any]) -> "Settings":
    """How the run saves and comes back, as far as it is stated."""
    from cupola.plan.campaign import Settings
    from cupola.plan.figure import check

    for name in ("stall", "restart", "interval"):
        if options[name] is not None:
            check(f"--{name}, in seconds", options[name], above=name == "interval")
    names = ("stall", "restart", "interval", "spares", "simulate", "seed")
    return Settings(**{name: options[name] for name in names})


def power_of(options: dict[str, Any], hardware: "Hardware") -> "Power":
    """What a device and its share of the host take."""
    from cupola.plan.cost import RATED_FRACTION, Power
    from cupola.plan.figure import Figure, check

    check("--pue", options["pue"], 1, 3)
    fraction = options["power_fraction"]
    if fraction is not None:
        check("--power-fraction", fraction, most=1.5)
    share: Figure | float = RATED_FRACTION if fraction is None else fraction
    return Power(hardware.watts, hardware.host_share * hardware.watts, share, pue=options["pue"])


def grid_of(text: str) -> float:
    """kg of CO2 equivalent per kWh, of a grid's name or a number.

    Raises:
        InputError: neither.
    """
    from cupola.plan.cost import GRIDS
    from cupola.plan.figure import check

    if text.lower() in GRIDS:
        return GRIDS[text.lower()][0]
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"--grid {text}: kg of CO2 per kWh are expected, such as 0.385, or one of {', '.join(GRIDS)}"
        ) from None
    check("--grid, in kg per kWh", value, most=2)
    return value


def price_of(options: dict[str, Any], hardware: "Hardware", power: "Power") -> "Rent | Purchase":
    """Rented, or bought with `--buy`; prices that nobody stated have an interval."""
    from cupola.plan.cost import Purchase, Rent
    from cupola.plan.figure import Figure, check

    def assumed(value: float) -> Figure:
        return Figure(value, DOUBT[0] * value, DOUBT[1] * value)

    bought = {name: options[name] for name in ("capital", "electricity", "lifetime")}
    for name, value in [*bought.items(), ("rent", options["rent"])]:
        if value is not None:
            check(f"--{name}", value, above=name == "lifetime")
    if not options["buy"]:
        if stated := [name for name, value in bought.items() if value is not None]:
            raise InputError(f"--{stated[0]}: is of devices that are bought; state --buy too")
        return Rent(assumed(hardware.rent) if options["rent"] is None else options["rent"])
    if options["rent"] is not None:
        raise InputError("--buy and --rent: devices are either bought or rented; leave out one of them")
    return Purchase(
        assumed(HOST_PRICE * hardware.price) if bought["capital"] is None else bought["capital"],
        power,
        ELECTRICITY if bought["electricity"] is None else bought["electricity"],
        LIFETIME if bought["lifetime"] is None else bought["lifetime"],
    )
