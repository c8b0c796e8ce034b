"""The mixture: exact weights over a period, within one entry in every prefix, each entry once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.data.mixture import PARTS, Mixture, Phase, lay_out, quantise
from cupola.errors import InputError

WEIGHTS = st.one_of(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12),
    st.lists(st.floats(0.9, 1.1), min_size=1, max_size=60),
    st.integers(1, 300).map(lambda tiny: [1.0] + [1e-9] * tiny),  # one large, many tiny
    st.tuples(st.integers(2, 200), st.integers(0, 2**32)).map(
        lambda how: (np.random.default_rng(how[1]).pareto(0.7, how[0]) + 1e-9).tolist()
    ),
)


def named(weights: list[float]) -> dict[str, float]:
    return {f"source {number:04}": weight for number, weight in enumerate(weights)}


@settings(deadline=None, max_examples=100)
@given(WEIGHTS)
def test_parts_are_whole_and_sum_exactly(weights: list[float]) -> None:
    parts = quantise(named(weights))
    assert sum(parts.values()) == PARTS
    assert min(parts.values()) >= 1
    whole = sum(weights)
    if min(weights) / whole * PARTS >= 1:  # nothing had to be raised
        assert all(abs(parts[n] - w / whole * PARTS) < 1 + 1e-6 for n, w in named(weights).items())
    assert quantise(dict(reversed(named(weights).items()))) == parts
    assert quantise({name: 1000 * weight for name, weight in named(weights).items()}) == parts


@settings(deadline=None, max_examples=60)
@given(WEIGHTS)
def test_any_prefix_holds_the_weights_to_one_entry(weights: list[float]) -> None:
    parts = quantise(named(weights))
    mixture = Mixture([(0, named(weights))])
    spans = 2 * PARTS + 17
    source, _ = mixture.draw(0, spans)
    for number, name in enumerate(mixture.names):
        counts = np.cumsum(source == number)
        share = np.arange(1, spans + 1) * parts[name] / PARTS
        assert np.abs(counts - share).max() < 1
        assert counts[PARTS - 1] == parts[name]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=20))
def test_layout_reaches_tijdemans_bound(parts: list[int]) -> None:
    table = lay_out(parts)
    bound = 1 - 1 / (2 * len(parts) - 2)
    for number, part in enumerate(parts):
        share = np.arange(1, sum(parts) + 1) * part / sum(parts)
        assert np.abs(np.cumsum(table == number) - share).max() <= bound + 1e-9


def test_a_thousand_uneven_sources_stay_within_one_entry() -> None:
    weights = np.random.default_rng(3).pareto(0.7, 1000) + 1e-9
    parts = np.array(list(quantise(named(weights.tolist())).values()))
    counts = np.zeros(1000)
    for slot, source in enumerate(lay_out(parts.tolist()), start=1):
        counts[source] += 1
        assert np.abs(counts - slot * parts / PARTS).max() < 1


def test_more_sources_than_parts_are_refused() -> None:
    assert set(quantise(named([1.0] * PARTS)).values()) == {1}
    with pytest.raises(InputError, match="at most 4,096"):
        quantise(named([1.0] * (PARTS + 1)))


def test_equal_weights_alternate_and_one_source_is_alone() -> None:
    assert len(Phase.begin(0, np.array([2048, 2048]), np.zeros(2, dtype=np.int64)).source) == 2
    source, entry = Mixture([(0, {"a": 0.5, "b": 0.5})]).draw(0, 6)
    assert sorted(source[:2].tolist()) == [0, 1]
    assert source[:2].tolist() == source[2:4].tolist() == source[4:].tolist()
    assert entry.tolist() == [0, 0, 1, 1, 2, 2]
    source, entry = Mixture([(0, {"only": 3.0})]).draw(5, 9)
    assert source.tolist() == [0] * 4
    assert entry.tolist() == [5, 6, 7, 8]


PHASES = st.lists(
    st.tuples(
        st.integers(1, 3 * PARTS),
        st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-4, 10), min_size=1),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(PHASES, st.data())
def test_phases_go_on_counting(lengths: list[tuple[int, dict[str, float]]], data: st.DataObject) -> None:
    """No entry of a source is left out or comes twice, whatever the phases and wherever one looks."""
    starts = np.cumsum([0, *(length for length, _ in lengths[:-1])]).tolist()
    mixture = Mixture([(start, weights) for start, (_, weights) in zip(starts, lengths, strict=True)])
    spans = starts[-1] + lengths[-1][0]
    source, entry = mixture.draw(0, spans)
    for number in range(len(mixture.names)):
        assert np.array_equal(entry[source == number], np.arange((source == number).sum()))
    cut = data.draw(st.integers(0, spans))
    assert mixture.entries(cut).tolist() == np.bincount(source[:cut], minlength=len(mixture.names)).tolist()
    some = mixture.draw(cut, spans)
    assert np.array_equal(some[0], source[cut:])
    assert np.array_equal(some[1], entry[cut:])
    for start, (length, weights) in zip(starts, lengths, strict=True):
        parts = quantise(weights)
        here = source[start : start + length]
        for number, name in enumerate(mixture.names):
            assert abs((here == number).sum() - length * parts.get(name, 0) / PARTS) < 1


def test_far_positions_cost_nothing() -> None:
    mixture = Mixture([(0, {"a": 0.3, "b": 0.7})])
    far = 10**14
    source, entry = mixture.draw(far, far + 100)
    assert mixture.entries(far + 100).sum() == far + 100
    assert entry[source == 0][0] == mixture.entries(far)[0]
    assert mixture.draw(7, 7)[0].size == 0
