"""The arithmetic of a sweep: which values, how far each goes, who goes on.

Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification"), with the rungs of
ASHA (Li et al. 2018): n trials to 1/factor^k of the way, the best 1/factor of them to the next rung, up to
the whole. Rungs are waited for, since trials of one model take equally long. Values lie on a grid: in one
dimension it covers the range evenly, shows the shape of the curve, and says whether the best lies at the
edge, which random or model-based draws (a library's) would not.

The last rung has `FINALISTS` at least: only there has the decay been trained, and one value alone would have
nothing to be compared with.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from cupola.compare.admission import takes_real_numbers
from cupola.errors import InputError

FINALISTS = 2
DIGITS = 3  # of the values between the ends
WIDE = 10.0  # from the lowest to the highest value, above which even steps cover little of the lower end
RANGE = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(:(?P<scale>\w+))?")
WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Over:
    """What is swept: a setting and its values, ascending."""

    key: str
    values: tuple[float, ...]
    log: bool

    @property
    def wide(self) -> bool:
        """Whether a logarithmic grid would suit the range better."""
        return not self.log and self.values[0] > 0 and self.values[-1] / self.values[0] > WIDE


def parse_over(text: str, trials: int) -> Over:
    """`KEY=LOW..HIGH` or `KEY=LOW..HIGH:log`.

    Whole numbers at both ends give whole numbers, but where the setting is a real number.

    Raises:
        InputError: no key, no range, a range that is empty, or fewer different values in it than trials.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    match = RANGE.fullmatch(rest)
    if not equals or not all(key.split(".")) or match is None or match["scale"] not in (None, "log"):
        raise InputError(
            f"--over {text}: KEY=LOW..HIGH or KEY=LOW..HIGH:log is expected, such as"
            " stages.pretrain.learning_rate=1e-4..1e-2:log"
        )
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise InputError(f"--over {text}: LOW and HIGH are numbers, such as 1e-4..1e-2") from None
    log = match["scale"] == "log"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--over {text}: the range is empty; LOW is below HIGH")
    if log and low <= 0:
        raise InputError(f"--over {text}: a logarithmic grid begins above 0")
    whole = all(WHOLE.fullmatch(match[end].strip()) for end in ("low", "high"))
    whole = whole and not takes_real_numbers(key)
    values = grid(low, high, trials, log, whole)
    if any(after <= before for before, after in pairwise(values)):
        what = "whole numbers" if whole else f"values of {DIGITS} digits"
        raise InputError(f"--over {text}: has no {trials} different {what}; say a smaller --trials")
    return Over(key, values, log)


def grid(low: float, high: float, trials: int, log: bool, whole: bool) -> tuple[float, ...]:
    """Values from low to high, evenly spaced or evenly by ratio; between the ends of few digits."""
    values = [low]
    for number in range(1, trials - 1):
        share = number / (trials - 1)
        value = low * (high / low) ** share if log else low + (high - low) * share
        values.append(round(value) if whole else float(f"{value:.{DIGITS}g}"))
    values.append(high)
    return tuple(int(value) if whole else value for value in values)


def shares(trials: int, factor: int) -> tuple[float, ...]:
    """How much of the way each rung is, ascending; the last is the whole."""
    rungs = 0
    while factor ** (rungs + 1) <= trials:
        rungs += 1
    return tuple(float(factor) ** -(rungs - rung) for rung in range(rungs + 1))


def entrants(trials: int, factor: int, rung: int) -> int:
    """How many trials go to a rung, counted from 0."""
    return min(trials, max(FINALISTS, trials // factor**rung))


def cost(trials: int, factor: int) -> float:
    """Training of the whole sweep, in stages."""
    total, before = 0.0, 0.0
    for rung, share in enumerate(shares(trials, factor)):
        total += entrants(trials, factor, rung) * (share - before)
        before = share
    return total
