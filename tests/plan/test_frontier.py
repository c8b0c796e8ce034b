"""The front of time against cost beside its definition, and how devices and deadlines are named."""

import random

import pytest

from cupola.errors import InputError
from cupola.plan.candidates import Question
from cupola.plan.execution import Execution
from cupola.plan.figure import Figure
from cupola.plan.frontier import Point, cheapest, deadline, front, on, places, point, survey
from cupola.plan.hardware import parse
from cupola.plan.request import of_preset
from cupola.plan.search import search
from cupola.recipe.loading import load_preset

REQUEST = of_preset("llama3-8b", load_preset("llama3-8b"), 8192, 64 * 8192)
QUESTION = Question(REQUEST, Execution(), *parse("h100:8"))
BEST = search(QUESTION, 1).best[0]


def steps_alone(tokens):
    """A price: days of steps without interruptions, and their rent at 2.95 dollars an hour."""

    def price(layout, devices, step):
        days = tokens / step.tokens * step.seconds.value / 86400
        return days, days * 24 * devices * 2.95

    return price


def points(seed, number=60):
    draw = random.Random(seed)
    return [
        Point(QUESTION, BEST, Figure.of(draw.randint(1, 12)), Figure.of(draw.randint(1, 12)))
        for _ in range(number)
    ]


def beats(one, other):
    pair, its = (one.days.value, one.dollars.value), (other.days.value, other.dollars.value)
    return pair != its and all(mine <= yours for mine, yours in zip(pair, its, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_beats(seed):
    some = points(seed)
    found = front(some)
    wanted = {
        (one.days.value, one.dollars.value) for one in some if not any(beats(other, one) for other in some)
    }
    assert [(one.days.value, one.dollars.value) for one in found] == sorted(wanted)


@pytest.mark.parametrize("days", [0.5, 3, 7, 12])
def test_the_cheapest_by_a_deadline(days):
    some = points(3)
    able = sorted((one.dollars.value, one.days.value) for one in some if one.days.value <= days)
    found = cheapest(some, days)
    assert (None if found is None else (found.dollars.value, found.days.value)) == (able[0] if able else None)


def test_what_does_not_fit_is_no_point():
    alone = point(on(QUESTION, *parse("a100-40:1")), steps_alone(1e12))
    assert alone.best is None
    assert "GiB too much" in alone.why
    assert front([alone]) == []
    assert cheapest([alone], 100) is None


def test_days_and_dollars_are_those_of_the_steps():
    questions = [on(QUESTION, *place) for place in places("h100:8-32")]
    found = survey(questions, lambda question: steps_alone(15e12))
    assert [one.name for one in found] == ["h100:8", "h100:16", "h100:32"]
    for one in found:
        seconds = 15e12 * one.best.per_token
        assert one.days.value == pytest.approx(seconds / 86400)
        assert one.dollars.value == pytest.approx(seconds / 3600 * one.question.devices * 2.95)


def test_devices_are_named_in_lists_and_ranges():
    named = [(hardware.name, count) for hardware, count in places("h100:64-300, b200:8,h100:128")]
    assert named == [("h100", 64), ("h100", 128), ("h100", 256), ("h100", 300), ("b200", 8)]
    assert [deadline(text) for text in ("30d", "12h", "2w", "1.5 d")] == [30, 0.5, 14, 1.5]


@pytest.mark.parametrize(
    ("call", "text", "words"),
    [
        (places, "h100:64-8", "the range ends before it begins; write h100:8-64"),
        (places, "h10:64-128", "did you mean h100?"),
        (places, "h100:-8", "a whole number from 1"),
        (places, ",".join(f"h100:{count}" for count in range(1, 70)), "at most 64"),
        (deadline, "soon", "--deadline soon: a time above 0 is expected, such as 30d"),
        (deadline, "0d", "a time above 0"),
        (deadline, "-3d", "a time above 0"),
    ],
)
def test_what_is_wrong_is_one_line(call, text, words):
    with pytest.raises(InputError) as raised:
        call(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
