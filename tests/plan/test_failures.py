"""Rates of interruptions: the published counts come back, and intervals are those of a Poisson count."""

import math
import random

import pytest

from cupola.errors import InputError
from cupola.plan.failures import KINDS, Run, gamma_quantile, poisson_rate, published, rates

LLAMA = published().run("llama3")


def test_llama_3_counts_and_the_time_between_them():
    assert {kind: LLAMA.count(kind) for kind in KINDS} == {"hardware": 356, "software": 63, "operator": 47}
    there = rates(16384, elsewhere=False)
    assert there.mtti_hours.value == pytest.approx(54 * 24 / 419)
    assert there.mtti_hours.value == pytest.approx(3.09, abs=0.005)
    assert LLAMA.node_rate == pytest.approx(3.79, abs=0.005)
    assert 16384 * there.mtti_hours.value == pytest.approx(50_677, rel=1e-4)
    assert LLAMA.by_cause(16384)["faulty GPU"].value == pytest.approx(148 / 54)
    assert sum(rate.value for rate in LLAMA.by_cause(16384).values()) == pytest.approx(466 / 54)


def test_other_runs_are_as_published():
    assert published().run("opt").rate("hardware", 992).value == pytest.approx(105 / 56)  # "~2 a day"
    assert published().run("opt").rate("software", 992) is None
    assert published().run("bloom").rate("hardware", 384).value * 7 == pytest.approx(
        1, abs=0.15
    )  # "~1 a week"


def test_hardware_and_software_grow_with_devices_and_operators_do_not():
    small, large = rates(1024), rates(16384)
    for kind, factor in (("hardware", 16), ("software", 16), ("operator", 1)):
        assert getattr(large, kind).value == pytest.approx(factor * getattr(small, kind).value)
    assert small.mtti_hours.value == pytest.approx(49.5, abs=0.1)


def test_the_law_of_growth_of_software_is_what_the_counts_say():
    """The exponent between Llama 3 and BLOOM, from the counts: 1 within its error, and 0 far outside."""
    bloom = published().run("bloom")
    a_day = [run.count("software") / run.days for run in (LLAMA, bloom)]
    apart = math.log(LLAMA.devices / bloom.devices)
    exponent = math.log(a_day[0] / a_day[1]) / apart
    error = math.sqrt(1 / LLAMA.count("software") + 1 / bloom.count("software")) / apart
    assert exponent == pytest.approx(1.01, abs=0.005)
    assert error == pytest.approx(0.16, abs=0.005)


def test_rates_of_an_uncounted_cluster_hold_the_published_ones():
    """Four of the five published rates lie within the interval around Llama 3's, which claims 90%."""
    table = published()
    rate = LLAMA.node_rate
    others = [run.node_rate for run in table.runs.values()] + list(table.node_rates.values())
    held = [other for other in others if rate * table.elsewhere.low <= other <= rate * table.elsewhere.high]
    assert len(others) == 5
    assert len(held) >= 4
    # Meta's research jobs, 1,024 GPUs: 7.9 hours apart.
    assert rates(1024).mtti_hours.low == pytest.approx(7.9, rel=0.2)
    there, here = rates(1024, elsewhere=False).mtti_hours, rates(1024).mtti_hours
    assert there.value == here.value
    assert here.low < there.low < there.high < here.high


@pytest.mark.parametrize(
    ("degrees", "low", "high"),
    # 5% and 95% of chi-square with so many degrees of freedom, from tables: it is 2 Gamma(degrees / 2).
    [
        (1, 0.0039321, 3.8415),
        (2, 0.102587, 5.9915),
        (7, 2.16735, 14.0671),
        (10, 3.9403, 18.3070),
        (100, 77.9295, 124.3421),
    ],
)
def test_gamma_quantiles_are_those_of_printed_tables(degrees, low, high):
    assert 2 * gamma_quantile(degrees / 2, 0.05) == pytest.approx(low, rel=5e-5)
    assert 2 * gamma_quantile(degrees / 2, 0.95) == pytest.approx(high, rel=5e-5)


def test_the_interval_of_a_count_holds_the_true_rate_nine_times_in_ten():
    draw = random.Random(1)

    def count(mean: float) -> int:
        number, time = 0, draw.expovariate(1)
        while time < mean:
            number, time = number + 1, time + draw.expovariate(1)
        return number

    held = 0
    for _ in range(1000):  # for one mean the share swings by a few percent, as counts are whole
        mean = draw.uniform(2, 20)
        found = poisson_rate(count(mean), 2.0)
        held += found.low <= mean / 2 <= found.high
    assert held / 1000 == pytest.approx(0.9, abs=0.025)


def test_no_event_is_a_rate_between_zero_and_a_bound():
    found = poisson_rate(0, 10)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(3.841 / 2 / 10, rel=1e-3)
    assert poisson_rate(4000, 1).high == pytest.approx(4000 + 1.645 * math.sqrt(4000), rel=0.001)


def test_a_file_of_ones_own_takes_its_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("runs: {mine: {devices: 64, days: 30, hardware: {disk: 3}, software: {}}}\n")
    mine = published(path).run("mine")
    assert mine == Run("mine", "mine", "", 64, 8, 30.0, {"hardware": {"disk": 3}, "software": {}})
    found = rates(128, "mine", path)
    assert found.hardware.value == pytest.approx(0.2)
    assert found.software.value == 0
    assert found.operator == LLAMA.rate("operator", 128)


BAD = {
    "runs: {a: {devices: 0, days: 3}}": "runs.a.devices: must be a number above 0, not 0",
    "runs: {a: {devices: 8}}": "runs.a.days: must be a number above 0, not None",
    "runs: {a: {devices: 8, days: 3, hardware: {gpu: -1}}}": "hardware.gpu: must be a whole number",
    "runs: {a: {devices: 8, days: 3, hardware: 4}}": "runs.a.hardware: must be a mapping",
    "runs: {a: {devices: 8, days: 3, hardwear: {}}}": "hardwear: no such entry",
    "runs: [a]": "must hold `runs:`",
    "nodes: [{rate: 3}]\nruns: {a: {devices: 8, days: 3}}": "nodes: each must have",
    "runs: {": "can't be read",
}


@pytest.mark.parametrize(("text", "says"), BAD.items())
def test_a_wrong_file_is_one_line(tmp_path, text, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        published(path)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_one_line():
    with pytest.raises(InputError, match="no such run; there are llama3, opt, bloom"):
        rates(8, "gpt5")
    with pytest.raises(InputError, match="devices: 0 can't be"):
        rates(0)
