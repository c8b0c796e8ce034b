"""Energy, carbon and dollars: the rows that others published, and an account kept by hand."""

import pytest

from cupola.errors import InputError
from cupola.plan.cost import GRIDS, HOURS_PER_YEAR, Bill, Power, Purchase, Rent, bill, carbon, measured
from cupola.plan.figure import Figure

US, CLOUD = GRIDS["us"][0], GRIDS["us-2020-cloud"][0]
CARD = {"fraction": 1.0, "host": 0.0, "pue": 1.1}  # as Meta's model cards count: TDP, no host

ENERGY = {
    # name: device-hours, watts, PUE, published MWh
    "LLaMA 7B": (82_432, 400, 1.1, 36),
    "LLaMA 13B": (135_168, 400, 1.1, 59),
    "LLaMA 65B": (1_022_362, 400, 1.1, 449),
    "OPT-175B, as LLaMA counts": (809_472, 400, 1.1, 356),
    "GPT-3 175B": (14.8 * 24 * 10_000, 330, 1.1, 1287),
    "BLOOM-176B": (1_082_990, 400, 1.0, 433.196),
}


@pytest.mark.parametrize("name", ENERGY)
def test_published_energy(name):
    hours, watts, pue, published = ENERGY[name]
    found = Power(watts, **{**CARD, "pue": pue}).energy(hours)
    assert found.value == pytest.approx(published, rel=0.009)  # the least rounded row has two digits
    assert round(found.value) == pytest.approx(published, abs=2)


CARBON = {
    # name: device-hours, watts, PUE, kg per kWh, published tonnes, within
    "LLaMA 7B": (82_432, 400, 1.1, US, 14, 0.01),
    "LLaMA 13B": (135_168, 400, 1.1, US, 23, 0.01),
    "LLaMA 65B": (1_022_362, 400, 1.1, US, 173, 0.01),
    "OPT-175B, as LLaMA counts": (809_472, 400, 1.1, US, 137, 0.01),
    "Llama 2 7B": (184_320, 400, 1.1, US, 31.22, 0.001),
    "Llama 2 34B": (1_038_336, 350, 1.1, US, 153.90, 0.001),
    "Llama 2 70B": (1_720_320, 400, 1.1, US, 291.42, 0.001),
    "Llama 3 70B": (6.4e6, 700, 1.1, US, 1900, 0.01),
    # Llama 3.1's card has a factor of 0.411 to 0.414 on TDP x hours instead of 0.4235.
    "Llama 3.1 8B": (1.46e6, 700, 1.1, US, 420, 0.035),
    "Llama 3.1 405B": (30.84e6, 700, 1.1, US, 8930, 0.025),
    "GPT-3 175B": (14.8 * 24 * 10_000, 330, 1.1, CLOUD, 552, 0.005),
    "BLOOM-176B": (1_082_990, 400, 1.0, GRIDS["france"][0], 24.69, 0.001),
    # The grid factor is that of the row itself: this checks the arithmetic alone.
    "PaLM 540B": (8_404_992, 378.5, 1.08, GRIDS["google-oklahoma"][0], 271.43, 0.001),
}


@pytest.mark.parametrize("name", CARBON)
def test_published_carbon(name):
    hours, watts, pue, grid, published, within = CARBON[name]
    energy = Power(watts, **{**CARD, "pue": pue}).energy(hours)
    tonnes = carbon(energy, grid).value
    assert tonnes == pytest.approx(published, rel=within, abs=0.5 if published == round(published) else 0)


def test_published_dollars():
    """DeepSeek-V3's own count at $2 an hour; MPT-7B's $200,000 is the same price for 440 A100 in 9.5 days."""
    assert Rent(2.0).per_device_hour().times(2_788_000).value == 5_576_000
    mpt = bill(440, 9.5, Power(400), US, Rent(2.0))
    assert mpt.device_hours.value == 100_320
    assert mpt.dollars.value == pytest.approx(200_000, rel=0.005)


def test_the_seeds_tens_of_millions_of_dollars():
    """Llama 3 405B, 30.84 million hours at $1.5 to $3; days on 16,384 devices."""
    run = bill(16384, 30.84e6 / 16384 / 24, measured(700), US, Rent(Figure(2, 1.5, 3)))
    assert run.dollars.value == pytest.approx(61.7e6, rel=0.001)
    assert (run.dollars.low, run.dollars.high) == pytest.approx((46.3e6, 92.5e6), rel=0.001)


def test_power_at_the_wall_is_what_meters_showed():
    """8 H100 at full work: 76% of 10.2 kW. A V100 in its node: 330 W."""
    h100 = measured(700, pue=1).kilowatts(measured(700).fraction)
    assert h100.value == pytest.approx(0.76 * 10.2 / 8, rel=0.01)
    v100 = measured(300, pue=1).kilowatts(measured(300).fraction)
    assert v100.low < 0.330 < v100.high
    # DGX-1V's own rating: 3.5 kW of which 8 x 300 W are devices.
    assert Power(300, 3500 / 8 - 300, 0.76, pue=1).energy(1e6).value == pytest.approx(330, rel=0.01)
    assert h100.low < h100.value < h100.high


def test_bought_devices_by_an_account_kept_year_by_year():
    power = Power(700, 300, 0.8, idle=0.25, pue=1.2)
    own = Purchase(
        40_000, power, 0.08, lifetime=4, residual=0.1, utilisation=0.75, upkeep=0.03, interest=0.05
    )
    spent, worked, value = 0.0, 0.0, 40_000.0
    for _ in range(4 * 12):  # months; straight-line depreciation, interest on what is bound
        worn = 40_000 * 0.9 / 48
        spent += worn + (value - worn / 2) * 0.05 / 12 + 40_000 * 0.03 / 12
        value -= worn
        hours = HOURS_PER_YEAR / 12
        spent += 1.0 * 1.2 * 0.08 * hours * (0.75 * 0.8 + 0.25 * 0.25)
        worked += hours * 0.75
    assert value == pytest.approx(4000)
    assert own.per_device_hour().value == pytest.approx(spent / worked, rel=1e-9)
    parts = own.capital_per_device_hour().value + own.electricity_per_device_hour().value
    assert own.per_device_hour().value == pytest.approx(parts)


def test_doubt_in_the_inputs_is_doubt_in_the_results():
    sure = bill(1024, 30, Power(700, idle=0.3), 0.4, Rent(2))
    doubt = bill(
        1024, Figure(30, 25, 40), Power(700, fraction=Figure(1, 0.8, 1.1)), Figure(0.4, 0.3, 0.5), Rent(2)
    )
    for name in ("device_hours", "energy", "carbon", "dollars"):
        known, unsure = getattr(sure, name), getattr(doubt, name)
        assert known.low == pytest.approx(known.value) == pytest.approx(known.high)
        assert unsure.value == pytest.approx(known.value)
        assert unsure.low < 0.9 * unsure.value < 1.1 * unsure.value < unsure.high
    width = {name: getattr(doubt, name).high / getattr(doubt, name).low for name in Bill.__annotations__}
    assert width["device_hours"] == pytest.approx(1.6)
    assert width["device_hours"] < width["energy"] < width["carbon"]
    assert width["dollars"] == pytest.approx(1.6)


def test_waiting_takes_less_power_and_as_many_dollars():
    power = Power(700, fraction=0.8, idle=0.2)
    all_day, half = (bill(8, 10, power, 0.4, Rent(2), busy=busy) for busy in (1.0, 0.5))
    assert half.dollars == all_day.dollars
    assert half.energy.value == pytest.approx(all_day.energy.value * (0.5 + 0.5 * 0.25))
    assert half.energy.value == pytest.approx(power.energy(960, 960).value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Rent(-2), "rent in dollars per device-hour: -2 can't be; it must be at least 0"),
        (lambda: Power(700, pue=0.9), "PUE: 0.9 can't be; it must be at least 1 and at most 3"),
        (lambda: Power(0), "device power in watts: 0 can't be; it must be above 0"),
        (lambda: Power(700, fraction=-0.5), "power fraction: -0.5 can't be"),
        (lambda: Power(700, idle=2), "idle power fraction: 2 can't be"),
        (lambda: carbon(3, -0.1), "grid factor in kg per kWh: -0.1 can't be"),
        (lambda: Purchase(-1, Power(700), 0.1), "capital in dollars per device: -1 can't be"),
        (lambda: Purchase(1, Power(700), -0.1), "electricity in dollars per kWh: -0.1 can't be"),
        (lambda: Purchase(1, Power(700), 0.1, lifetime=0), "lifetime in years: 0 can't be"),
        (
            lambda: Purchase(1, Power(700), 0.1, utilisation=Figure(0.9, 0.5, 1.2)),
            "utilisation: 1.2 can't be",
        ),
        (lambda: bill(0, 3, Power(700), 0.4, Rent(2)), "devices: 0 can't be; it must be at least 1"),
        (lambda: bill(8, -3, Power(700), 0.4, Rent(2)), "days: -3 can't be"),
    ],
)
def test_what_can_not_be_is_one_line(make, says):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
