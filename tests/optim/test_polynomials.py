import numpy as np
import pytest

from cupola.optim.polynomials import LARGEST_ERROR, SAFETY, SMALLEST, best_quintic, polar_express


def value(quintic, t):
    a, b, c = quintic
    return a * t + b * t**3 + c * t**5


@pytest.mark.oracle
def test_published_coefficients():
    """Of the paper's listing, for singular values from 1e-3, whose intervals begin no lower than a cushion of
    0.0240733 of their end; the value at both true ends is then centred on 1."""
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    ]
    low, high = 1e-3, 1.0
    for expected in published:
        quintic, _ = best_quintic(max(low, 0.02407327424182761 * high), high)
        factor = 2 / (value(quintic, low) + value(quintic, high))
        centred = tuple(factor * coefficient for coefficient in quintic)
        assert centred == pytest.approx(expected, rel=1e-5)
        low, high = value(centred, low), 2 - value(centred, low)


@pytest.mark.parametrize("low", [0.9, 0.5, 0.1, 0.01, 1e-3])
def test_no_quintic_is_nearer(low):
    """Against weighted least squares with Lawson's weights, which converge to the best by another way."""
    points = (low + 1) / 2 - (1 - low) / 2 * np.cos(np.linspace(0, np.pi, 4001))
    powers = np.stack([points, points**3, points**5], axis=1)
    weights = np.full(len(points), 1 / len(points))
    for _ in range(3000):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(powers * root, root[:, 0], rcond=None)[0]
        error = np.abs(1 - powers @ solution)
        weights = weights * error / (weights * error).sum()
    quintic, largest = best_quintic(low, 1.0)
    assert np.abs(1 - value(quintic, points)).max() == pytest.approx(largest, rel=1e-5)
    assert largest <= error.max() * (1 + 1e-6)
    assert largest == pytest.approx(error.max(), rel=2e-2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_what_is_lifted_comes_as_near_as_is_said(steps):
    quintics = polar_express(steps)
    lowest = np.geomspace(SMALLEST, 1, 20001)
    found = lowest
    for quintic in quintics:
        found = value(quintic, found)
    reached = lowest[found >= 1 - LARGEST_ERROR - 0.01].min()
    within = found[lowest >= reached * 1.01]
    assert np.abs(within - 1).max() < LARGEST_ERROR + 0.02
    assert reached < {1: 0.2, 2: 0.05, 3: 0.012, 4: 0.004}[steps]


def test_many_steps_end_at_one():
    found = np.geomspace(2 * SMALLEST, 1, 101)
    for quintic in polar_express(12):
        found = value(quintic, found)
    assert np.abs(found - 1).max() < 2e-3


def test_rounding_above_one_is_foreseen():
    for steps in (1, 2, 3, 4, 5):
        found = np.array([SAFETY])
        for quintic in polar_express(steps):
            found = value(quintic, found)
        assert abs(float(found[0]) - 1) < 1.5 * LARGEST_ERROR
