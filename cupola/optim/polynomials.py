"""Odd quintics that, one after the other, carry singular values to 1.

Each is the best on the interval where the one before it left them: of all a t + b t^3 + c t^5 the one whose
largest distance from 1 is smallest; their composition is the best of its form (Amsel et al. 2025, "The Polar
Express", theorem 3.1, https://arxiv.org/abs/2505.16932). Found by Remez' exchange algorithm.
"""

import functools
import math

import numpy as np

Quintic = tuple[float, float, float]
"""a, b, c of a t + b t^3 + c t^5."""

JORDAN: Quintic = (3.4445, -4.7750, 2.0315)
"""Of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), the same at each step."""
LARGEST_ERROR = 0.25
"""Distance from 1 of the singular values that are lifted. Fewer of them would come nearer."""
SMALLEST = 1e-3
"""Singular value, of the largest, below which bf16 holds nothing worth lifting."""
SAFETY = 1.01
"""How far above 1 rounding may put the largest singular value; the quintics rise steeply there."""
NEAR = 1e-4
"""Relative width of an interval that the exchange can no longer resolve."""


@functools.lru_cache
def polar_express(steps: int) -> tuple[Quintic, ...]:
    """The best `steps` quintics for singular values from as low as `LARGEST_ERROR` lets them, to 1.

    Each is for values that are up to `SAFETY` times as large as the one before it leaves them.
    """
    low, high = math.log(SMALLEST), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _compose(math.exp(middle), steps)[1] > LARGEST_ERROR:
            low = middle
        else:
            high = middle
    quintics, _ = _compose(math.exp(high), steps)
    return tuple((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in quintics)


def _compose(low: float, steps: int) -> tuple[list[Quintic], float]:
    """The quintics for values in [low, 1] and how far from 1 they are at the end."""
    high, error, found = 1.0, 1 - low, []
    for _ in range(steps):
        quintic, error = best_quintic(low, high)
        found.append(quintic)
        low, high = 1 - error, 1 + error
    return found, error


def best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """The odd quintic nearest to 1 on an interval, and its largest distance from 1 there.

    Args:
        low, high: 0 < low < high.
    """
    if high - low < NEAR * high:  # the interval's limit: value 1, first and second derivative 0
        m = (low + high) / 2
        return (15 / 8 / m, -10 / 8 / m**3, 3 / 8 / m**5), 0.0
    points = np.array([low, low + (high - low) / 4, low + (high - low) * 3 / 4, high])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    for _ in range(100):
        equations = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(equations, np.ones(4))
        # Where the derivative a + 3b t^2 + 5c t^4 is 0; between the ends there are two such points.
        root = math.sqrt(9 * b * b - 20 * a * c)
        new = np.array(
            [low, math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)), high]
        )
        done = np.abs(new - points).max() < 1e-12 * high
        points = new
        if done:
            break
    return (float(a), float(b), float(c)), abs(float(error))
