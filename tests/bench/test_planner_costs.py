"""Energy, carbon, checkpoints and dollars of published rows, beside sums done by hand."""

from dataclasses import replace

import pytest

from bench.planner.predictors import Case, Unpredicted, cases
from bench.planner.rows import Row, read
from bench.planner.table import predict

ROWS = read()


def of(name: str, metric: str) -> Case:
    row = next(row for row in ROWS if row.name == name)
    return next(case for case in cases(row, ROWS) if case.metric == metric)


def asked(row: Row, metric: str) -> Case:
    return Case(row, metric, 1.0, 0.0, ROWS)


@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("LLaMA-1 65B", "energy_MWh", 1_022_362 * 0.4 * 1.1 / 1000),
        ("OPT-175B", "tCO2e_llama_accounting", 809_472 * 0.4 * 1.1 * 0.385 / 1000),
        ("Llama-2 34B", "tCO2e", 1_038_336 * 0.35 * 1.1 * 0.385 / 1000),
        ("BLOOM-176B", "energy_MWh", 1_082_990 * 0.4 / 1000),
        ("BLOOM-176B", "tCO2e_dynamic", 1_082_990 * 0.4 * 0.057 / 1000),
        ("BLOOM-176B", "checkpoint_GB", 176_247_271_424 * (2 + 4 + 8) / 2**30),
        ("DeepSeek-V3 pretrain", "usd_at_2_per_h", 2_788_000 * 2.0),
    ],
)
def test_the_accounting_of_each_source(name, metric, expected):
    case = of(name, metric)
    found = predict(case)
    assert found.value == pytest.approx(expected)
    assert found.value == pytest.approx(case.published, rel=0.01)
    assert found.low <= found.value <= found.high


def test_metered_power_counts_the_host():
    """GPT-3's 330 W a device (arXiv:2104.10350): a DGX-1V of 3.5 kW for 8 of 300 W, three quarters of it."""
    found = predict(of("GPT-3 175B", "energy_MWh"))
    hours = 14.8 * 24 * 10_000
    assert found.value == pytest.approx(hours * 3500 / 8 * 0.76 * 1.1 / 1e6, rel=0.01)
    assert found.low < 1287 < found.high


@pytest.mark.parametrize("metric", ["energy_MWh", "tCO2e", "device_W", "usd_at_2_per_h"])
def test_a_value_is_not_predicted_from_itself(metric):
    row = next(row for row in ROWS if row.name == "Llama-2 70B")
    changed = replace(row, metrics=row.metrics | {metric: 1.0})
    assert predict(asked(changed, metric)) == predict(asked(row, metric))


def test_without_hours_of_its_own_they_are_predicted():
    row = next(row for row in ROWS if row.name == "Llama-2 7B")
    without = replace(row, metrics={"tCO2e": row.metrics["tCO2e"]})
    own, predicted = predict(asked(row, "energy_MWh")), predict(asked(without, "energy_MWh"))
    hours = predict(asked(without, "gpu_hours"))
    assert predicted.value == pytest.approx(hours.value * 0.4 * 1.1 / 1000)
    assert predicted.high / predicted.low > own.high / own.low


def test_numbers_in_a_metrics_name():
    """Devices, tokens and rents; of the same speed twice the devices take half as long."""
    row = next(row for row in ROWS if row.name == "OPT-175B")
    days = {name: predict(asked(row, name)).value for name in ("days_on_512", "days_ideal_on_1024")}
    assert days["days_on_512"] == pytest.approx(2 * days["days_ideal_on_1024"])
    assert predict(asked(row, "days_for_600B_tokens")).value == pytest.approx(
        2 * predict(asked(row, "days")).value
    )
    dear, cheap = (predict(asked(row, f"usd_at_{rent}_per_h")).value for rent in ("3", "1.5"))
    assert dear == pytest.approx(2 * cheap)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("OPT-175B", "tCO2e_self"),
        ("BLOOM-176B", "checkpoint_save_s"),
        ("DeepSeek-V3 pretrain", "gpu_hours_total_incl_ext_post"),
    ],
)
def test_what_nothing_is_known_of_has_a_reason(name, metric):
    with pytest.raises(Unpredicted, match=r"n.t |no row"):
        predict(of(name, metric))
