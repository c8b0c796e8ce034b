"""Figures with intervals combine as draws of them do."""

import math
import random

import pytest

from cupola.errors import InputError
from cupola.plan.figure import Figure, check


def quantiles(draws: list[float]) -> tuple[float, float]:
    draws = sorted(draws)
    return draws[len(draws) // 20], draws[-len(draws) // 20]


def test_a_product_has_the_interval_of_products_of_draws():
    one, other = Figure(2, 1, 4), Figure(10, 8, 12.5)
    sigma = [math.log(figure.high / figure.value) / 1.6449 for figure in (one, other)]
    draw = random.Random(0)
    products = [
        20 * math.exp(sigma[0] * draw.gauss(0, 1) + sigma[1] * draw.gauss(0, 1)) for _ in range(40_000)
    ]
    found = one.times(other)
    assert found.value == 20
    assert (found.low, found.high) == pytest.approx(quantiles(products), rel=0.03)


def test_a_sum_has_the_interval_of_sums_of_draws():
    one, other = Figure(20, 18, 22), Figure(10, 9, 11)
    draw = random.Random(0)
    sums = [30 + draw.gauss(0, 2 / 1.6449) + draw.gauss(0, 1 / 1.6449) for _ in range(40_000)]
    found = one.plus(other)
    assert found.value == 30
    assert (found.low, found.high) == pytest.approx(quantiles(sums), rel=0.005)


def test_exact_numbers_stay_exact_and_quotients_turn_the_interval_round():
    assert Figure.of(3).times(4) == Figure(12, 12, 12)
    assert Figure.of(3).plus(4) == Figure(7, 7, 7)
    found = Figure.of(12).over(Figure(3, 2, 6))
    assert (found.value, found.low, found.high) == pytest.approx((4, 2, 6))
    assert Figure(2, 1, 4).over(Figure.of(0)).value == math.inf
    assert Figure(0, 0, 1).times(5) == Figure(0, 0, 5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (-1, "price: -1 can't be; it must be at least 0"),
        (Figure(2, -1, 3), "price: -1 can't be; it must be at least 0"),
        (math.nan, "not a finite number"),
        (Figure(5, 6, 7), "outside of its own interval"),
    ],
)
def test_what_can_not_be_is_one_line(value, says):
    with pytest.raises(InputError, match=says) as caught:
        check("price", value)
    assert "\n" not in str(caught.value)
