"""The keyed shuffle against its definition in plain integers, and against what a shuffle must be."""

import hashlib
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.data.permutation import ROUNDS, keys, origin, permute


def shuffled(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    key = keys(seed, "pretrain", "speeches", epoch)
    return permute(np.arange(size), np.full(size, size), np.broadcast_to(key, (size, ROUNDS)))


def mix(value: int) -> int:
    """SplitMix64's finaliser in unbounded integers."""
    mask = 2**64 - 1
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    return value ^ value >> 31


def reference(index: int, size: int, seed: int, epoch: int) -> int:
    """One point of the shuffle, from the definition."""
    text = json.dumps([seed, "pretrain", "speeches", epoch]).encode()
    raw = hashlib.blake2b(text, digest_size=64, person=b"cupola shuffle").digest()
    round_keys = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 64, 8)]
    left = math.isqrt(size - 1) + 1
    right = math.ceil(size / left)
    while True:
        high, low = divmod(index, right)
        for number, key in enumerate(round_keys):
            if number % 2 == 0:
                high = (high + mix(low ^ key) % left) % left
            else:
                low = (low + mix(high ^ key) % right) % right
        index = high * right + low
        if index < size:
            return index


SIZES = st.one_of(
    st.integers(1, 3000),
    st.sampled_from([1, 2, 3, 5, 7, 127, 128, 129, 1009, 1023, 1024, 1025, 2047, 2048, 2500, 2501]),
)


@settings(deadline=None, max_examples=150)
@given(SIZES, st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_every_key_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(shuffled(size, seed, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 256, 1000])
def test_equals_the_definition_in_plain_integers(size: int) -> None:
    assert shuffled(size, 7, 3).tolist() == [reference(index, size, 7, 3) for index in range(size)]


def test_points_of_huge_sources_stay_inside_and_apart() -> None:
    size = 2**48 + 12345
    index = np.random.default_rng(0).integers(0, size, 20_000)
    index = np.unique(np.concatenate([index, [0, 1, size - 1]]))
    key = np.broadcast_to(keys(1, "a", "b", 0), (len(index), ROUNDS))
    places = permute(index, np.full(len(index), size), key)
    assert len(np.unique(places)) == len(index)
    assert places.min() >= 0
    assert places.max() < size


def test_each_point_takes_its_own_size_and_key() -> None:
    sizes = np.array([5, 1, 1000, 77, 1000])
    index = np.array([4, 0, 999, 3, 999])
    epochs = [0, 9, 2, 3, 4]
    key = np.stack([keys(7, "pretrain", "speeches", epoch) for epoch in epochs])
    expected = [reference(i, n, 7, e) for i, n, e in zip(index.tolist(), sizes.tolist(), epochs, strict=True)]
    assert permute(index, sizes, key).tolist() == expected


def test_all_orders_of_a_few_entries_are_equally_likely() -> None:
    draws = 12_000
    key = np.stack([keys(seed, "a", "b", 0) for seed in range(draws)])
    places = [permute(np.full(draws, index), np.full(draws, 4), key) for index in range(4)]
    seen = Counter(zip(*(place.tolist() for place in places), strict=True))
    expected = draws / math.factorial(4)
    counts = [seen[order] for order in itertools.permutations(range(4))]
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_square < 60  # 23 degrees of freedom: exceeded once in 30,000 fair experiments


@pytest.mark.parametrize("size", [64, 1009, 4096, 20_000])
def test_looks_random(size: int) -> None:
    """Displacement, neighbours, fixed points, and successive epochs, as of a random permutation."""
    first, second = shuffled(size, 1, 0), shuffled(size, 1, 1)
    index = np.arange(size)
    tolerance = 4 / math.sqrt(size)
    assert abs(np.abs(first - index).mean() / size - 1 / 3) < tolerance  # E|x - y| of uniform x, y
    assert abs(np.corrcoef(index, first)[0, 1]) < tolerance
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < tolerance
    assert abs(np.corrcoef(first, second)[0, 1]) < tolerance
    assert (first == index).sum() < 10  # Poisson(1)
    assert (first == second).sum() < 10
    assert (np.abs(np.diff(first)) == 1).sum() < 14  # Poisson(2)


def test_keys_differ_by_everything_that_names_an_epoch() -> None:
    what = [
        (0, "a", "b", 0),
        (1, "a", "b", 0),
        (0, "ab", "", 0),
        (0, "a", "c", 0),
        (0, "a", "b", 1),
        (0, "", "ab", 0),
    ]
    assert len({keys(*one).tobytes() for one in what}) == len(what)
    assert len({origin(*one, 10**9) for one in what}) == len(what)


def test_origins_are_spread_over_the_source() -> None:
    places = np.array([origin(0, "a", "b", epoch, 1000) for epoch in range(4000)])
    assert places.min() >= 0
    assert places.max() < 1000
    assert abs(places.mean() - 500) < 25
    assert len(np.unique(places)) > 950
