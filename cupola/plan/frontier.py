"""Time against cost over kinds and numbers of devices: which no other beats in both, and the cheapest by a
deadline.

Each point is the fastest layout that a search finds there; what it then takes and costs is asked of whoever
knows the run (`Price`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cupola.errors import InputError
from cupola.plan.candidates import Question, Rejected
from cupola.plan.figure import Figure
from cupola.plan.hardware import Hardware, parse
from cupola.plan.layout import Layout
from cupola.plan.search import Candidate, search, summary
from cupola.plan.steptime import StepTime

MOST_POINTS = 64
UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0}

Price = Callable[[Layout, int, StepTime], tuple[Figure | float, Figure | float]]
"""Days and dollars of a run on a layout, with so many devices, whose steps take so long."""


@dataclass(frozen=True)
class Point:
    """The best on some devices.

    Attributes:
        best: None where nothing fits; `why` not.
        days, dollars: of the run.
    """

    question: Question
    best: Candidate | None
    days: Figure = field(default=Figure.of(0.0))
    dollars: Figure = field(default=Figure.of(0.0))
    why: str = ""

    @property
    def name(self) -> str:
        """As `--on` takes it."""
        return f"{self.question.hardware.name}:{self.question.devices}"


def point(question: Question, price: Price) -> Point:
    """The fastest layout there, and what the run then takes."""
    found = search(question, most=1)
    if not found.best:
        return Point(question, None, why=nearest(found.rejected))
    best = found.best[0]
    days, dollars = price(best.layout, question.devices, best.step)
    return Point(question, best, Figure.of(days), Figure.of(dollars))


def nearest(rejected: Sequence[Rejected]) -> str:
    """Why nothing is left: by how much the nearest layout doesn't fit, or the fault that most have."""
    told = summary(tuple(rejected))
    unfit = [one for one in told if one.kind == "memory"]
    if unfit:
        return "does not fit: " + min(unfit, key=lambda one: one.amount).words
    return max(told, key=lambda one: one.count).words if told else "no layout has these settings"


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in one of days and dollars without losing in the other, fastest first; of
    equal ones the first."""
    found: list[Point] = []
    able = [one for one in points if one.best is not None]
    for one in sorted(able, key=lambda each: (each.days.value, each.dollars.value)):
        if not found or one.dollars.value < found[-1].dollars.value:
            found.append(one)
    return found


def cheapest(points: Iterable[Point], days: float) -> Point | None:
    """The point of least dollars that takes at most so many days; the faster of equal ones."""
    able = [one for one in points if one.best is not None and one.days.value <= days]
    return min(able, key=lambda one: (one.dollars.value, one.days.value), default=None)


def survey(questions: Iterable[Question], price_on: Callable[[Question], Price]) -> list[Point]:
    """A point for each question."""
    return [point(one, price_on(one)) for one in questions]


def places(text: str, known: Mapping[str, Hardware] | None = None) -> list[tuple[Hardware, int]]:
    """`h100:256,b200:64-512` -> each kind and number: of a range its ends, and the doublings of the lower.

    Raises:
        InputError: no such device, no number or range, too many of them.
    """
    found: list[tuple[Hardware, int]] = []
    for part in text.split(","):
        name, _, numbers = part.strip().partition(":")
        if not name:
            raise InputError(
                f"--on {text}: names no device {'beside a comma' if ',' in text else ''}".rstrip()
            )
        low, dash, high = numbers.partition("-")
        if dash and not (low and high):
            raise InputError(
                f"--on {part.strip()}: a whole number from 1 is expected, or a range such as {name}:64-512"
            )
        if not dash:
            found.append(parse(part.strip(), known))
            continue
        (hardware, first), (_, last) = parse(f"{name}:{low}", known), parse(f"{name}:{high}", known)
        if last < first:
            raise InputError(f"{part.strip()}: the range ends before it begins; write {name}:{high}-{low}")
        counts = [first << power for power in range(64) if first << power < last] + [last]
        found += [(hardware, count) for count in counts]
    once = {(hardware.name, count): (hardware, count) for hardware, count in found}
    if len(once) > MOST_POINTS:
        raise InputError(f"--on {text}: names {len(once)} numbers of devices; at most {MOST_POINTS}")
    return list(once.values())


def deadline(text: str) -> float:
    """`30d`, `12h` or `2w` -> days.

    Raises:
        InputError: it is no such time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hdw])\s*", text)
    days = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < days < float("inf"):
        raise InputError(f"--deadline {text}: a time above 0 is expected, such as 30d, 12h or 2w")
    return days


def on(question: Question, hardware: Hardware, devices: int) -> Question:
    """The same question on other devices."""
    return replace(question, hardware=hardware, devices=devices)
