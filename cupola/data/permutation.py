"""A keyed shuffle of `size` entries, computed at a point and never stored.

Guarantees: for every key, `permute` is a bijection of [0, size); it depends on nothing but (key, index,
size), so any entry of any epoch can be asked for at once, in any order, on any machine.
Costs: about 0.2 µs an entry; no memory that grows with the source.
Trade-off: a stored shuffle is uniform over all permutations and this one only looks so. That is what the
seeds of a training run need; it is no cipher.

The shuffle is a Feistel network over the integers [0, left * right), left = ceil(sqrt(size)), with
addition modulo the two sides (the generalised network of Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). left * right exceeds `size` by less than `left`, and a point that lands beyond `size` goes
through the network again until it lands inside (cycle walking, ibid.): one point in sqrt(size) at most.
The round function is SplitMix64's finaliser (Steele, Lea and Flood 2014).
"""

import hashlib
import json
from functools import lru_cache

import numpy as np

ROUNDS = 8  # the 64 bytes of one BLAKE2b digest are the keys of eight rounds

_SHIFTS = tuple(np.uint64(shift) for shift in (30, 27, 31))
_FACTORS = tuple(np.uint64(factor) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _digest(purpose: bytes, bytes_wanted: int, *what: int | str) -> bytes:
    """BLAKE2b of an unambiguous text of `what`; `purpose` keeps different uses apart."""
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=bytes_wanted, person=purpose).digest()


@lru_cache(maxsize=1 << 14)
def keys(seed: int, stage: str, source: str, epoch: int) -> np.ndarray:
    """The round keys of one epoch of one source: uint64 (ROUNDS,), read-only."""
    return np.frombuffer(_digest(b"cupola shuffle", 8 * ROUNDS, seed, stage, source, epoch), dtype="<u8")


@lru_cache(maxsize=1 << 14)
def origin(seed: int, stage: str, source: str, epoch: int, length: int) -> int:
    """Where an epoch's cut of a source of `length` tokens begins: in [0, length)."""
    return int.from_bytes(_digest(b"cupola origin", 16, seed, stage, source, epoch), "little") % length


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])


def _network(index: np.ndarray, left: np.ndarray, right: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Every round adds to one side, modulo its size, a function of the other side."""
    high, low = index // right, index % right
    for number in range(0, ROUNDS, 2):
        high = (high + _mix(low ^ keys[:, number]) % left) % left
        low = (low + _mix(high ^ keys[:, number + 1]) % right) % right
    return high * right + low


def permute(index: np.ndarray, size: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The shuffled place of each index, each with its own size and key.

    Args:
        index: (m,) integers, 0 <= index < size.
        size: (m,) integers, at least 1 and below 2**52.
        keys: (m, ROUNDS) uint64.

    Returns:
        (m,) int64.
    """
    index, size = index.astype(np.uint64), size.astype(np.uint64)
    left = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    right = (size + left - np.uint64(1)) // left
    place = _network(index, left, right, keys)
    outside = np.flatnonzero(place >= size)
    while outside.size:
        place[outside] = _network(place[outside], left[outside], right[outside], keys[outside])
        outside = outside[place[outside] >= size[outside]]
    return place.astype(np.int64)
