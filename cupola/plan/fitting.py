"""One's own scaling law from a few small runs, and what it says of a larger one, with an interval.

Hoffmann et al. 2022, approach 3: the logarithms of measured losses are fitted by floor + a / N^alpha + b /
D^beta under a Huber loss, from several starts. They use L-BFGS; with five numbers to find, the
Levenberg-Marquardt steps below get there in a few dozen. For given exponents the law is linear in the rest,
which gives every start its best floor, a and b.

The interval is a bootstrap of residuals: the runs stay where they are, the chosen N and D being a design, and
their deviations are drawn anew. It tells how far the runs determine the law, not whether the law holds beyond
them: where it is asked for ten times the compute of the largest run, that is the greater doubt.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cupola.display import count
from cupola.errors import InputError
from cupola.plan.scaling import CORRECTED, Choice, Law

FEWEST = 6
"""Runs that a law of five numbers needs to have a residual at all."""
DELTA = 1e-3
"""Deviations of the log loss beyond which a run counts linearly only (Hoffmann et al.)."""
EXPONENTS = (0.15, 0.3, 0.5, 0.8)
"""Starts for alpha, and for beta."""
WIDEST = (0.01, 3.0)
"""Exponents outside of which the search doesn't go: a law that ends there isn't determined by its runs."""


@dataclass(frozen=True)
class Point:
    """A finished run: its parameters, the (fresh) tokens it read, and its loss in nats a token."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Predicted:
    """A loss, and between what it lies."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A law fitted on runs.

    Attributes:
        laws: the same law fitted on each draw of the bootstrap.
        residuals: log of measured over fitted loss, run by run, widened by the numbers that the fit used up.
    """

    law: Law
    laws: tuple[Law, ...]
    residuals: tuple[float, ...]

    def predict(self, parameters: float, tokens: float, level: float = 0.9) -> Predicted:
        """The loss of another run, and the interval that holds it with probability `level` if the law
        holds."""
        drawn = [law.loss(parameters, tokens) for law in self.laws]
        # Every draw with every residual: what the runs leave open, and what a run deviates by itself.
        spread = sorted(loss * math.exp(r) for loss, r in itertools.product(drawn, self.residuals))
        loss = self.law.loss(parameters, tokens)
        return Predicted(
            loss, min(loss, _quantile(spread, (1 - level) / 2)), max(loss, _quantile(spread, (1 + level) / 2))
        )

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Of one of the law's numbers: floor, a, b, alpha, beta or exponent."""
        drawn = sorted(float(getattr(law, name)) for law in self.laws)
        return _quantile(drawn, (1 - level) / 2), _quantile(drawn, (1 + level) / 2)

    def best_parameters(self, flops: float, level: float = 0.9) -> tuple[float, float]:
        """Between what the best size for so much compute lies."""
        drawn = sorted(law.optimum(flops).parameters for law in self.laws)
        return _quantile(drawn, (1 - level) / 2), _quantile(drawn, (1 + level) / 2)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def fit(points: Sequence[Point], draws: int = 100, seed: int = 0) -> Fit:
    """The law of some runs.

    Args:
        draws: of the bootstrap.
        seed: of its draws: the same points give the same interval.

    Raises:
        InputError: too few runs, or runs that can't tell the effect of N from that of D.
    """
    import numpy as np

    _check(points)
    n = np.log([p.parameters for p in points])
    d = np.log([p.tokens for p in points])
    losses = np.log([p.loss for p in points])
    found = [_search(n, d, losses, start) for start in _starts(n, d, losses)]
    _, best = min(found, key=lambda each: each[0])
    fitted = _log_losses(n, d, best)
    residuals = (losses - fitted) * math.sqrt(len(points) / (len(points) - 5))
    generator = np.random.default_rng(seed)
    laws = []
    for _ in range(draws):
        again = fitted + generator.choice(residuals, len(points))
        laws.append(_law(_search(n, d, again, best)[1], "a draw of the bootstrap"))
    source = f"fitted on {len(points)} runs"
    return Fit(_law(best, source), tuple(laws), tuple(float(r) for r in residuals))


def _check(points: Sequence[Point]) -> None:
    for point in points:
        if not all(
            value > 0 and math.isfinite(value) for value in (point.parameters, point.tokens, point.loss)
        ):
            raise InputError(
                f"a run of {point.parameters:g} parameters, {point.tokens:g} tokens and loss {point.loss:g} "
                "can't be fitted: each has to be above 0"
            )
    if len(points) < FEWEST:
        raise InputError(
            f"a scaling law has 5 numbers to fit: {len(points)} run{' is' if len(points) == 1 else 's are'}"
            f" too few, give {FEWEST} or more{_advice(points, FEWEST - len(points))}"
        )
    sizes = {p.parameters for p in points}
    lengths = {p.tokens for p in points}
    if len(sizes) < 3 or len(lengths) < 3:
        raise InputError(
            f"the runs have {len(sizes)} different sizes and {len(lengths)} different numbers of tokens; "
            "give at least 3 of both" + _advice(points, max(3 - len(sizes), 3 - len(lengths)))
        )
    if len({p.tokens / p.parameters for p in points}) < 2:
        raise InputError(
            "every run has the same number of tokens a parameter, which can't tell the effect of size from "
            "that of data; vary it" + _advice(points, 2)
        )


def _advice(points: Sequence[Point], number: int) -> str:
    """The runs that would add most, as the end of a sentence."""
    if not points:
        return ""
    runs = [
        f"{count(run.parameters)} parameters on {count(run.tokens)} tokens"
        for run in most_telling(points, number)
    ]
    return f". What would add most, at no more compute than the largest: {', '.join(runs)}"


def most_telling(points: Sequence[Point], number: int, law: Law = CORRECTED) -> list[Choice]:
    """The runs that, one after the other, would narrow the law's five numbers most: those of whose losses the
    present ones say least (D-optimal; Fedorov 1972).

    Candidates are the sizes and horizons that are there, half and twice as much, at no more compute than the
    largest run.

    Args:
        law: by which the loss is taken to depend on the five.
    """
    import numpy as np

    most = max(p.parameters * p.tokens for p in points) * (1 + 1e-9)
    steps = (0.5, 1.0, 2.0)
    sizes = sorted({p.parameters * step for p in points for step in steps})
    horizons = sorted({p.tokens * step for p in points for step in steps})
    runs = [(n, d) for n in sizes for d in horizons if n * d <= most]
    start = np.array([math.log(law.floor), math.log(law.a), math.log(law.b), law.alpha, law.beta])

    def slopes(where: Sequence[tuple[float, float]]) -> Any:
        logs = np.log(np.array(where))
        return _slopes(logs[:, 0], logs[:, 1], start)

    known, tried, chosen = slopes([(p.parameters, p.tokens) for p in points]), slopes(runs), []
    information = known.T @ known + 1e-6 * np.eye(5)
    taken: list[int] = []
    for _ in range(number):
        doubt = np.einsum("ri,ij,rj->r", tried, np.linalg.inv(information), tried)
        doubt[taken] = -1.0
        best = int(np.argmax(doubt))
        taken.append(best)
        chosen.append(Choice(*runs[best]))
        information += np.outer(tried[best], tried[best])
    return chosen


def _log_losses(n: Any, d: Any, law: Any) -> Any:
    """log L of arrays of log N and log D; `law` is log floor, log a, log b, alpha, beta."""
    import numpy as np

    return np.logaddexp(np.logaddexp(law[0], law[1] - law[3] * n), law[2] - law[4] * d)


def _starts(n: Any, d: Any, losses: Any) -> list[Any]:
    """For pairs of exponents the floor, a and b that fit best, where there are any above 0."""
    import numpy as np

    found = []
    weight = np.exp(-losses)
    for alpha, beta in itertools.product(EXPONENTS, EXPONENTS):
        terms = np.stack([np.ones_like(n), np.exp(-alpha * n), np.exp(-beta * d)], axis=1) * weight[:, None]
        scale = np.linalg.norm(terms, axis=0)
        solved = np.linalg.lstsq(terms / scale, np.ones_like(n), rcond=None)[0]
        # Those below 0 begin as a thousandth of the loss.
        solved = np.maximum(solved, 1e-3 * np.sqrt(len(n))) / scale
        found.append(np.array([*np.log(solved), alpha, beta]))
    return found


def _search(n: Any, d: Any, losses: Any, start: Any) -> tuple[float, Any]:
    """Levenberg-Marquardt with Huber's weights: (cost, law)."""
    import numpy as np

    law, damping = start.copy(), 1e-3
    cost, residual = _cost(n, d, losses, law)
    for _ in range(200):
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
        slopes = _slopes(n, d, law)
        curvature = slopes.T @ (weights[:, None] * slopes)
        step = np.linalg.solve(
            curvature + damping * np.diag(np.diag(curvature) + 1e-12), slopes.T @ (weights * residual)
        )
        tried = law + np.clip(step, -2.0, 2.0)
        tried[3:] = np.clip(tried[3:], *WIDEST)
        tried[0] = max(tried[0], -20.0)
        new, new_residual = _cost(n, d, losses, tried)
        if new < cost:
            done = cost - new < 1e-10 * cost
            law, cost, residual, damping = tried, new, new_residual, max(damping / 5.0, 1e-12)
            if done:
                break
        else:
            damping *= 5.0
            if damping > 1e12:
                break
    return cost, law


def _cost(n: Any, d: Any, losses: Any, law: Any) -> tuple[float, Any]:
    import numpy as np

    residual = losses - _log_losses(n, d, law)
    size = np.abs(residual)
    return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum()), residual


def _slopes(n: Any, d: Any, law: Any) -> Any:
    """Derivatives of the log loss by the five numbers, (runs, 5)."""
    import numpy as np

    whole = _log_losses(n, d, law)
    floor = np.exp(law[0] - whole)
    size = np.exp(law[1] - law[3] * n - whole)
    data = np.exp(law[2] - law[4] * d - whole)
    return np.stack([floor, size, data, -n * size, -d * data], axis=1)


def _law(found: Any, source: str) -> Law:
    import numpy as np

    floor, a, b = (float(value) for value in np.exp(found[:3]))
    return Law(floor, a, b, float(found[3]), float(found[4]), source)
