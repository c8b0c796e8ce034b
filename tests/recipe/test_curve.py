"""Values over a stage: on the line between points, or on a stair that is never ahead of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.recipe.curve import MIXTURE_STAIRS, Curve, Piecewise
from cupola.recipe.schema import Stage

TOTAL = 10_000


def stage(**settings):
    return Stage(**{"data": "text", "tokens": TOTAL, "learning_rate": 1e-3, **settings})


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.integers(0, TOTAL),
)
def test_a_linear_curve_is_numpys(starts, values, position):
    starts = [0, *starts, 100]
    points = {f"{start}%": value for start, value in zip(starts, values, strict=False)}
    curve = Curve.parse({"points": points, "between": "linear"}, float)
    expected = np.interp(position, np.array(starts) * TOTAL / 100, values[: len(starts)])
    assert curve.at(position, TOTAL) == pytest.approx(expected, abs=1e-12)


def test_steps_hold_and_cosine_is_half_a_wave():
    steps = Curve.parse({0: 3.0, "400 tokens": 1.0}, float)
    assert [steps.at(p, TOTAL) for p in (0, 399.5, 400, TOTAL)] == [3.0, 3.0, 1.0, 1.0]
    wave = Curve.parse({"points": {"0%": 2.0, "50%": 0.0}, "between": "cosine"}, float)
    at = np.array([0, 1000, 2500, 4999, 5000, 9000])
    expected = 1 + np.cos(np.pi * np.minimum(at / 5000, 1))
    assert [wave.at(p, TOTAL) for p in at] == pytest.approx(expected)


@given(
    st.sampled_from([1, 3, 64]),
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.integers(0, TOTAL - 1),
)
def test_a_stair_climbs_by_multiples_and_is_less_than_one_behind_the_line(multiple, heights, position):
    values = [height * multiple for height in heights]
    starts = np.linspace(0, 80, len(values)).round().astype(int)
    points = {f"{start}%": value for start, value in zip(starts, values, strict=True)}
    stair = Piecewise.parse({"points": points, "between": "linear", "multiple": multiple}, int)
    found = [value for start, value in stair.starts(TOTAL) if start <= position][-1]
    line = np.interp(position, starts * TOTAL / 100, values)
    assert found % multiple == 0
    rounding = multiple * len(values) / 50  # of positions to whole tokens
    assert abs(found - line) < multiple + rounding
    assert all(abs(b - a) <= multiple for a, b in itertools.pairwise(stair.values))


def test_multiples_are_of_the_smallest_point_unless_stated():
    growing = {"points": {"0%": 512, "50%": 2048}, "between": "linear"}
    assert stage(sequence_length=growing).sequence_length.values == [512, 1024, 1536, 2048]
    finer = stage(sequence_length={**growing, "multiple": 256}).sequence_length
    assert finer.values == list(range(512, 2049, 256))
    assert [start for start, _ in finer.starts(6000)] == [0, 500, 1000, 1500, 2000, 2500, 3000]


def test_a_mixture_goes_over_in_equal_steps_of_the_right_mean():
    points = {"0%": {"a": 3, "b": 1}, "50%": {"b": 1, "c": 1}}
    mixture = stage(data={"points": points, "between": "linear"}).data
    starts = mixture.starts(TOTAL)
    assert [start for start, _ in starts] == [
        round(5000 * n / MIXTURE_STAIRS) for n in range(MIXTURE_STAIRS + 1)
    ]
    assert starts[-1][1] == {"b": 0.5, "c": 0.5}
    mean = {name: np.mean([weights.get(name, 0) for _, weights in starts[:-1]]) for name in "abc"}
    assert mean == pytest.approx({"a": 0.375, "b": 0.375, "c": 0.25})


WRITTEN = [
    {"batch_tokens": {"points": {"0%": 4096, "50%": 8192}, "between": "linear", "multiple": 1024}},
    {"sequence_length": {"0%": 128, "40%": 256}},
    {"z_loss": {"points": {"0%": 0.1, "100%": 0.0}, "between": "cosine"}},
    {"optimizer": {"kind": "muon", "momentum": {"0%": 0.85, "10%": 0.95}}},
    {"data": {"points": {"0%": {"a": 1.0}, "100%": {"a": 1.0, "b": 1.0}}, "between": "linear"}},
    {"learning_rate": {"peak": 1e-3, "decay": {"0%": 1.0, "60%": 0.1}}},
]


@pytest.mark.parametrize("settings", WRITTEN, ids=lambda settings: next(iter(settings)))
def test_written_back_as_it_was_read(settings):
    read = stage(**settings)
    dumped = read.model_dump(mode="json")
    for name, value in settings.items():
        kept = dumped[name]
        assert (kept if "peak" not in value and "kind" not in value else {k: kept[k] for k in value}) == value
    assert Stage.model_validate(dumped) == read


def growing(low, high, **more):
    return {"batch_tokens": {"points": {"0%": low, "50%": high}, **more}}


REFUSED = [
    (growing(4096, 6000, between="linear"), "6000 at 50% is no multiple of 4096"),
    (growing(1, 6000, between="linear"), "5999 steps of 1; take a larger multiple"),
    (growing(64, 128, between="cosine"), "between is steps or linear"),
    (growing(64, 128, between="quadratic"), "between is one of steps, linear, cosine"),
    (growing(64, 128, every=3), "unknown key 'every' beside points"),
    (growing(64, 128, multiple=64), "multiple is for numbers with between: linear"),
    (growing(64, 128, between="linear", multiple=0), "multiple is a whole number of tokens"),
    ({"batch_tokens": {"points": {"0%": 64}, "between": "linear"}}, "needs at least two points"),
    ({"z_loss": -1}, "a number of at least 0 and below 1e.06 is expected"),
    ({"z_loss": {"10%": 1.0}}, "the first position must be 0"),
    ({"z_loss": {"points": 3}}, "points is a mapping"),
    ({"z_loss": {"points": {"0%": 1.0, "120%": 2.0}, "between": "linear"}}, "at most 100%"),
    ({"optimizer": {"momentum": {"0%": 0.5, "10%": 1.0}}}, "at least 0 and below 1"),
    ({"learning_rate": {"peak": 1.0, "decay": {"0%": 2.0}}}, "a share of the peak, from 0 to 1"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        stage(**settings)
