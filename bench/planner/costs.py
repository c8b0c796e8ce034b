"""Energy, carbon, checkpoints and dollars of published rows.

Who publishes energy counts it in a way of his own, and hours are often of a whole programme. So what is
predicted is the accounting: of the hours that the row itself states, where it does, else of those that are
predicted for it. `ACCOUNTS` has who counts how; the others are taken to have metered, as `cupola plan` does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.planner.predictors import Case, Prediction, Unpredicted
from bench.planner.programs import device_of
from bench.planner.timing import device_hours
from cupola.cli.plan_prices import DOUBT
from cupola.plan import cost
from cupola.plan.execution import Execution
from cupola.plan.figure import Figure
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout
from cupola.plan.standing import Group, Held, standing

GIB = 2**30
ADAM = 8
STATED_RENT = r"usd_at_(\d+(?:\.\d+)?)_per_h"
"""Of a metric whose name says what a device-hour costs."""
GRID = Figure(cost.GRIDS["us"][0], 0.2, 0.6)
"""Where it isn't known which: kg of CO2 equivalent per kWh; an assumption."""


@dataclass(frozen=True)
class Account:
    """How energy is counted.

    Attributes:
        metered: as a meter shows it, with the host; else the devices' rated power all the time.
        pue: power usage effectiveness that is counted.
        grid: kg of CO2 equivalent per kWh.
    """

    metered: bool
    pue: float
    grid: float | Figure

    def power(self, watts: float, hardware: Hardware) -> cost.Power:
        """Of a device with this rated power."""
        if not self.metered:
            return cost.Power(watts, pue=self.pue)
        return cost.Power(watts, hardware.host_share * watts, cost.RATED_FRACTION, pue=self.pue)


CARDS = Account(False, 1.1, cost.GRIDS["us"][0])
ACCOUNTS: tuple[tuple[str, Account], ...] = (
    (r"llama|\bopt\b", CARDS),
    (r"bloom", Account(False, 1.0, cost.GRIDS["france"][0])),
    (r"palm", Account(True, 1.08, cost.GRIDS["google-oklahoma"][0])),
    (r"gpt-?3", Account(True, 1.1, cost.GRIDS["us-2020-cloud"][0])),
)
"""By a pattern of a row's name and group: Meta's model cards and LLaMA's Table 15, Luccioni et al. 2022,
Chowdhery et al. 2022 (whose own tonnes its grid's factor comes from), Patterson et al. 2021."""
OTHERS = Account(True, 1.1, GRID)


def _account(case: Case) -> Account:
    return next((one for pattern, one in ACCOUNTS if re.search(pattern, case.row.named)), OTHERS)


def _hours(case: Case) -> tuple[Figure, str]:
    """Device-hours, and where they are from."""
    stated = case.row.metrics
    for key in ("gpu_hours", "chip_hours"):
        if key in stated:
            return Figure.of(stated[key]), f"of the {key} that the row states"
    for key, days in stated.items():
        if found := re.match(r"days_on_(\d+)", key):
            return Figure.of(24 * days * int(found[1])), f"of the {key} that the row states"
    made = device_hours(case)
    return Figure(made.value, made.low, made.high), "of predicted hours"


def _watts(case: Case) -> float:
    """Rated power of a device: the row's own, where it states one."""
    stated = case.row.metrics.get("device_W")
    return stated if stated is not None and case.metric != "device_W" else device_of(case.row).watts


def _energy(case: Case) -> tuple[Figure, str]:
    hours, said = _hours(case)
    account = _account(case)
    how = "metered power" if account.metered else "rated power"
    power = account.power(_watts(case), device_of(case.row))
    return power.energy(hours), f"{said}, {how}, PUE {account.pue:g}"


def _predicted(case: Case, figure: Figure, note: str) -> Prediction:
    return Prediction(figure.value, figure.low * (1 - case.slack), figure.high * (1 + case.slack), note=note)


def energy(case: Case) -> Prediction:
    """MWh."""
    return _predicted(case, *_energy(case))


def carbon(case: Case) -> Prediction:
    """Tonnes of CO2 equivalent; of the same hours cards differ by 3%."""
    if case.metric.endswith("_self"):
        raise Unpredicted("its authors' accounting isn't published")
    account = CARDS if case.metric.endswith("_llama_accounting") else _account(case)
    spent, note = _energy(case)
    rounded = Figure(1.0, 0.97, 1.03)
    return _predicted(case, cost.carbon(spent, account.grid).times(rounded), note)


def rated_watts(case: Case) -> Prediction:
    """Of a device; some are run below their rating."""
    return _predicted(case, Figure(1.0, 0.85, 1.0).times(_watts(case)), "")


def mean_watts(case: Case) -> Prediction:
    """Of a device with its host, as metered, without the building."""
    power = replace(OTHERS, pue=1.0).power(_watts(case), device_of(case.row))
    return _predicted(case, power.kilowatts(power.fraction).times(1000), "with its share of the host")


def checkpoint(case: Case) -> Prediction:
    """GB of 16-bit weights beside fp32 ones and Adam's moments, as Megatron-LM and DeepSpeed write them.
    BLOOM's are GiB, as its 329 "GB" of 16-bit weights are."""
    parameters = float(case.size("params"))
    held = Group(Held(parameters, parameters, ADAM * parameters))
    weights, _, masters, states = standing(held, Layout(), Execution(precision="bf16", copies=True))
    unit = GIB if "bloom" in case.row.named else 1e9
    return _predicted(case, Figure(1.0, 0.98, 1.02).times((weights + masters + states) / unit), "")


def save_seconds(case: Case) -> Prediction:
    """Of a checkpoint."""
    raise Unpredicted("no row states how fast its storage is")


def all_hours(case: Case) -> Prediction:
    """Of a programme."""
    raise Unpredicted("its other runs aren't stated")


def dollars(case: Case) -> Prediction:
    """At the rent that the metric's name states, or at the record's, of its date."""
    if found := re.fullmatch(STATED_RENT, case.metric):
        stated = case.row.metrics.get("gpu_hours_total_incl_ext_post")
        hours, said = (Figure.of(stated), "of all hours stated") if stated else _hours(case)
        return _predicted(case, hours.times(float(found[1])), said)
    hardware = device_of(case.row)
    hours, said = _hours(case)
    return _predicted(
        case, hours.times(Figure(1.0, *DOUBT).times(hardware.rent)), f"{said}, at a rent of {hardware.priced}"
    )


COSTS: dict[str, Callable[[Case], Prediction]] = {
    "energy_MWh": energy,
    "tCO2e": carbon,
    "tCO2e_dynamic": carbon,
    "tCO2e_self": carbon,
    "tCO2e_llama_accounting": carbon,
    "device_W": rated_watts,
    "avg_W_per_chip": mean_watts,
    "checkpoint_GB": checkpoint,
    "checkpoint_save_s": save_seconds,
    "gpu_hours_total_incl_ext_post": all_hours,
    "usd": dollars,
}
"""By metric."""
FORMS: tuple[tuple[str, Callable[[Case], Prediction]], ...] = ((STATED_RENT, dollars),)
"""Of metrics that have a number in their name."""
