"""Successive halving's arithmetic, against counting, and the ranges that are refused."""

import math
from itertools import pairwise

import pytest

from cupola.compare.halving import FINALISTS, cost, entrants, parse_over, shares
from cupola.errors import InputError


@pytest.mark.parametrize(
    ("trials", "factor"), [(9, 3), (10, 3), (27, 3), (16, 4), (5, 2), (3, 3), (3, 5), (8, 2)]
)
def test_rungs_end_at_the_whole_and_each_lets_one_of_factor_on(trials, factor):
    rungs = shares(trials, factor)
    assert rungs[-1] == 1
    assert factor ** (len(rungs) - 1) <= trials < factor ** len(rungs)
    assert all(math.isclose(high / low, factor) for low, high in pairwise(rungs))
    going = [entrants(trials, factor, rung) for rung in range(len(rungs))]
    assert going[0] == trials
    for before, after in pairwise(going):
        assert after <= max(FINALISTS, before // factor) <= before
    counted = sum(
        max([0, *(s for s, n in zip(rungs, going, strict=True) if trial < n)]) for trial in range(trials)
    )
    assert cost(trials, factor) == pytest.approx(counted)


def test_nine_by_three_is_the_published_scheme_but_for_the_second_finalist():
    assert shares(9, 3) == pytest.approx((1 / 9, 1 / 3, 1))
    assert [entrants(9, 3, rung) for rung in range(3)] == [9, 3, 2]
    assert cost(9, 3) == pytest.approx(1 + 2 / 3 + 4 / 3)


def test_values_are_even_by_ratio_or_by_difference():
    over = parse_over("stages.a.learning_rate=1e-4..1e-2:log", 5)
    assert over.key == "stages.a.learning_rate"
    assert over.values == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)
    assert parse_over("x=0..0.3", 4).values == (0.0, 0.1, 0.2, 0.3)
    whole = parse_over("model.width=64..1024:log", 5).values
    assert whole == (64, 128, 256, 512, 1024)
    assert all(isinstance(value, int) for value in whole)
    assert parse_over("x=1e-4..1e-2", 3).wide
    assert not over.wide


@pytest.mark.parametrize(
    ("key", "real"),
    [
        ("stages.a.learning_rate", True),
        ("stages.a.learning_rate.final", True),
        ("stages.a.optimizer.weight_decay", True),
        ("stages.a.optimizer.covariance_decay", True),
        ("stages.a.data.speeches", True),
        ("stages.a.batch_tokens", False),
        ("stages.a.learning_rate.warmup", False),
        ("stages.a.optimizer.precondition_every", False),
        ("model.layers", False),
        ("nothing.such", False),
    ],
)
def test_whole_ends_give_real_numbers_where_the_setting_is_one(key, real):
    values = parse_over(f"{key}=0..2", 3).values
    assert all(isinstance(value, float if real else int) for value in values)
    if real:
        assert parse_over(f"{key}=0..1", 5).values == (0, 0.25, 0.5, 0.75, 1)
    else:
        with pytest.raises(InputError, match="has no 5 different whole numbers; say a smaller --trials"):
            parse_over(f"{key}=0..1", 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "KEY=LOW..HIGH"),
        ("x=1", "KEY=LOW..HIGH"),
        ("x=1..2:cubic", "KEY=LOW..HIGH"),
        ("=1..2", "KEY=LOW..HIGH"),
        ("x=a..b", "are numbers"),
        ("x=2..1", "the range is empty"),
        ("x=1..1", "the range is empty"),
        ("x=1..inf", "the range is empty"),
        ("x=0..1:log", "begins above 0"),
        ("x=1..3", "has no 9 different whole numbers"),
        ("x=1.0001..1.0002", "has no 9 different values of 3 digits"),
    ],
)
def test_bad_ranges_are_named(text, words):
    with pytest.raises(InputError) as caught:
        parse_over(text, 9)
    assert words in str(caught.value)
    assert text in str(caught.value)
