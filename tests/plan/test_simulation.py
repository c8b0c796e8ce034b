"""The simulation: the formula's mean, a plain loop's spread, and what no formula knows."""

import heapq
import math
import random
import statistics

import pytest

from cupola.errors import InputError
from cupola.plan.failures import rates
from cupola.plan.goodput import DAY, Cause, Practice, causes_of, expected, resolved
from cupola.plan.simulation import Simulation, simulate
from tests.plan.plain_runs import CASES, plain


def standard_error(found: Simulation) -> float:
    return statistics.stdev(found.days) / math.sqrt(len(found.days))


@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_the_formulas(name):
    causes, practice = CASES[name]
    found = simulate(causes, practice, 30, runs=400, seed=3)
    assert found.mean_days == pytest.approx(
        expected(causes, practice).days(30), abs=3 * standard_error(found)
    )
    assert found.mean_days == pytest.approx(30 + sum(found.lost_days.values()))


@pytest.mark.parametrize("name", ["crashes", "noticed late", "written late"])
def test_the_distribution_is_that_of_a_plain_loop(name):
    causes, practice = CASES[name]
    found = simulate(causes, practice, 10, runs=1000, seed=4)
    practice = resolved(practice, causes)
    draw = random.Random(2)
    days = sorted(plain(causes, practice, 10 * DAY, draw) / DAY for _ in range(200))
    spread = statistics.stdev(days)
    assert statistics.stdev(found.days) == pytest.approx(spread, rel=3 / math.sqrt(2 * 200))
    for share in (0.05, 0.5, 0.95):
        assert found.quantile(share) == pytest.approx(days[int(share * 200)], abs=0.6 * spread)


def test_a_planned_run_of_100_days_at_llama_3s_rates():
    causes = causes_of(rates(16384))
    found = simulate(causes, Practice(5, 600), 100)
    planned = expected(causes, Practice(5, 600))
    # A planned stop's checkpoint saves a little work that the formula counts as lost.
    assert found.mean_days == pytest.approx(planned.days(100), abs=3 * standard_error(found) + 0.01)
    assert found.figure.low < found.figure.value < found.figure.high
    assert found.goodput.low < planned.goodput < found.goodput.high
    exposed = found.mean_days - found.lost_days["detection"]
    assert found.interruptions["hardware"] == pytest.approx(356 / 54 * exposed, rel=0.01)
    for name, share in planned.lost.items():
        assert found.lost_days[name] == pytest.approx(share * planned.days(100), rel=0.02, abs=1e-9)


def test_nobody_plans_to_stop_while_the_job_is_down():
    """Planned stops come in the time in which the job computes or stalls, restarts not counted."""
    causes = [Cause("crash", 4.0), Cause("plan", 6.0, planned=True)]
    found = simulate(causes, Practice(10, 3600), 40, runs=300, seed=1)
    running = found.mean_days - found.lost_days["restarts"]
    assert found.lost_days["restarts"] > 0.4 * running
    assert found.interruptions["plan"] == pytest.approx(6 * running, rel=0.01)
    assert found.interruptions["crash"] == pytest.approx(4 * found.mean_days, rel=0.01)


def test_the_same_seed_is_the_same_run():
    causes = causes_of(rates(1024), shape=0.7)
    one, again, other = (simulate(causes, Practice(5, 600, spares=1), 20, 50, seed) for seed in (1, 1, 2))
    assert one == again
    assert one.days != other.days


def spares_loop(cause: Cause, practice: Practice, work: float, draw: random.Random) -> float:
    """Seconds waited for nodes in a run of one cause, without stalls: a pool and a queue of repairs."""
    ready, repairs, now, left, waited = practice.spares, [], 0.0, work, 0.0
    while True:
        step = draw.expovariate(cause.per_day / DAY)
        if step >= left:
            return waited
        left, now = left - step, now + step
        while repairs and repairs[0] <= now:
            heapq.heappop(repairs)
            ready += 1
        heapq.heappush(repairs, now + draw.expovariate(1 / cause.repair))
        if ready:
            ready -= 1
        else:
            back = heapq.heappop(repairs)
            waited, now = waited + back - now, back


@pytest.mark.parametrize("spares", [0, 1, 3])
def test_waiting_for_spares_is_that_of_a_plain_queue(spares):
    cause, practice = Cause("gpu", 4.0, repair=DAY / 2), Practice(0, 0, interval=1, spares=spares)
    found = simulate([cause], practice, 30, runs=1000)
    draw = random.Random(8)
    waits = [spares_loop(cause, practice, 30 * DAY, draw) / DAY for _ in range(400)]
    error = math.hypot(statistics.stdev(waits) / 20, standard_error(found))
    assert found.lost_days["waiting for a node"] == pytest.approx(statistics.fmean(waits), abs=3 * error)
    # Erlang's loss formula is exact here, save that all spares are there at the start.
    formula = expected([cause], practice)
    assert formula.lost["waiting for a node"] * formula.days(30) == pytest.approx(
        statistics.fmean(waits), rel=0.08
    )


def test_bunches_of_failures_lose_less_and_spread_more():
    """A Weibull law of shape 0.7 has the same mean time between failures."""
    steady, bunched = (
        simulate([Cause("any", 8.0, shape=shape)], Practice(60, 900), 60, seed=1) for shape in (1.0, 0.7)
    )
    assert bunched.interruptions["any"] == pytest.approx(steady.interruptions["any"], rel=0.02)
    assert bunched.lost_days["lost work"] < 0.97 * steady.lost_days["lost work"]
    assert statistics.stdev(bunched.days) > 1.1 * statistics.stdev(steady.days)


def test_uncertain_rates_widen_the_distribution():
    there = rates(16384)
    certain, open_ = (
        simulate(causes_of(there), Practice(5, 600), 30, seed=1, rate_spread=spread)
        for spread in (0.0, there.log_spread)
    )
    assert open_.figure.low < certain.figure.low
    assert open_.figure.high > 1.2 * certain.figure.high
    assert open_.figure.value == pytest.approx(certain.figure.value, rel=0.02)
    # On so many devices some draws are without hope; they take their mean, however long.
    vast = simulate(causes_of(rates(131072)), Practice(5, 600), 100, seed=1, rate_spread=there.log_spread)
    assert vast.figure.high > 5 * vast.figure.value


def test_without_interruptions_a_run_takes_its_work_and_stalls():
    found = simulate([], Practice(30, 600, interval=DAY / 4), 10, runs=3)
    assert found.days == pytest.approx([10 + 39 * 30 / DAY] * 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([Cause("a", 2000.0)], Practice(60, 900), 10), "the run would not get on"),
        (([], Practice(1, 1), 0), "days of work: 0 can't be"),
        (([], Practice(1, 1), 5, 0), "simulated runs: 0 can't be"),
    ],
)
def test_what_can_not_be_is_one_line(arguments, says):
    with pytest.raises(InputError, match=says):
        simulate(*arguments)
