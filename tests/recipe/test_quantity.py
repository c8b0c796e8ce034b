"""Amounts with units and values at positions: what is read, what is refused, what is written back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.recipe.curve import Piecewise
from cupola.recipe.quantity import UNITS, Quantity


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("20M tokens", 20_000_000, "tokens"),
        ("1000 steps", 1000, "steps"),
        ("1 step", 1, "steps"),
        ("2 epochs", 2, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("5%", 5, "%"),
        ("2.5 %", 2.5, "%"),
        ("5 percent", 5, "%"),
        ("1.005M tokens", 1_005_000, "tokens"),
        ("1.1B", 1_100_000_000, ""),
        ("3T tokens", 3 * 10**12, "tokens"),
        ("100k tokens", 100_000, "tokens"),
        ("1e9 tokens", 10**9, "tokens"),
        ("100_000", 100_000, ""),
        (4096, 4096, ""),
        (4096.0, 4096, ""),
        (0.5, 0.5, ""),
    ],
)
def test_reads_what_people_write(text, amount, unit):
    quantity = Quantity.parse(text)
    assert (quantity.amount, quantity.unit) == (amount, unit)
    assert isinstance(quantity.amount, type(amount))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tokens",
        "-5 tokens",
        "5 parsecs",
        "5 M tokens extra",
        "20m tokens",
        "1e999999999",
        True,
        None,
        [],
        -1,
    ],
)
def test_refuses_what_is_no_amount(text):
    with pytest.raises(ValueError):
        Quantity.parse(text)


@pytest.mark.parametrize("text", [float("nan"), float("inf"), "1e30 tokens", "1e999 tokens"])
def test_refuses_the_absurd_at_once(text):
    with pytest.raises(ValueError, match=r"from 0 to 10\^18"):
        Quantity.parse(text)


@given(st.integers(0, 10**18) | st.decimals(0, 1000, places=3).map(float), st.sampled_from(UNITS))
def test_what_is_written_reads_back(amount, unit):
    quantity = Quantity.parse(f"{amount} {unit}")
    assert Quantity.parse(str(quantity)) == quantity


def test_a_schedule_holds_from_its_positions():
    schedule = Piecewise.parse({"0%": 1, "40%": 2, "50%": 3}, int)
    assert schedule.starts(1000) == [(0, 1), (400, 2), (500, 3)]
    assert Piecewise.parse(schedule.dump(), int) == schedule


def test_one_value_is_a_schedule():
    assert Piecewise.parse(7, int).starts(10) == [(0, 7)]
    assert Piecewise.parse(7, int).dump() == 7


def test_positions_in_tokens():
    schedule = Piecewise.parse({"0": 1, "5k tokens": 2}, int)
    assert schedule.starts(10**6) == [(0, 1), (5000, 2)]
    assert Piecewise.parse(schedule.dump(), int) == schedule


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"10%": 1}, "first position must be 0"),
        ({}, "first position must be 0"),
        ({"0%": 1, "50%": 2, "40%": 3}, "must increase"),
        ({"0%": 1, "100%": 2}, "below 100%"),
        ({"0%": 1, "50%": 2, "1M tokens": 3}, "all of one kind"),
        ({"0%": 1, "5 steps": 2}, "percentages or tokens"),
    ],
)
def test_refuses_schedules_out_of_order(steps, message):
    with pytest.raises(ValueError, match=message):
        Piecewise.parse(steps, int)
