"""A whole run, interruption by interruption, many times over: the distribution of its days.

The rules are those of `cupola.plan.goodput`, whose formula gives the mean where there is one: exponential
interruptions and enough spares. Here their times may follow a Weibull law, spares run out and come back from
repair, and the rates themselves may be uncertain, each run drawing its own.

A run is a point on one axis of time, on which stretches of work (`interval` seconds) and stalls alternate; an
interruption moves the point back to the last checkpoint that was wholly written, a planned one leaves it
where it is. So only interruptions are events, however many steps lie between them, and one event of all runs
is a few operations on arrays: a thousand runs of a hundred days on 16,384 devices take about half a second.

Clocks of failures run while the job computes, stalls or restarts. A cause's clock is of the whole machine,
and starts anew with each of its failures. A repair takes an exponential time. The last stretch of work ends
the run, without a stall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cupola.errors import InputError
from cupola.plan.figure import Figure, check
from cupola.plan.goodput import DAY, Cause, Goodput, Practice, at_rates, expected, resolved

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LEAST_GOODPUT = 0.02
"""Below this the run is not simulated: it would take fifty times its work, and events without end."""
FARTHEST = 2.0
"""How many standard deviations a run's factor on the rates may lie from 1, in logarithms."""
MANY = 20_000
"""A run with more interruptions than this is not played but takes its mean, from which it would be less than
1% away."""
PARTS = ("stalls", "lost work", "detection", "waiting for a node", "restarts")


@dataclass(frozen=True)
class Simulation:
    """What came of many runs.

    Attributes:
        work_days: what the steps alone take.
        interval: seconds of work between checkpoints.
        days: of each run, in ascending order.
        lost_days: mean days that went to each kind of loss; with `work_days` they add up to the mean of
            `days`.
        interruptions: mean number by cause.
    """

    work_days: float
    interval: float
    days: tuple[float, ...]
    lost_days: dict[str, float]
    interruptions: dict[str, float]

    @property
    def mean_days(self) -> float:
        """Mean over the runs."""
        return math.fsum(self.days) / len(self.days)

    @property
    def figure(self) -> Figure:
        """Days: the median, 5% and 95% of the runs."""
        return Figure(self.quantile(0.5), self.quantile(0.05), self.quantile(0.95))

    @property
    def goodput(self) -> Figure:
        """Work over time: of the median run, and of the runs at 95% and 5% of the days."""
        days = self.figure
        return Figure(*(self.work_days / value for value in (days.value, days.high, days.low)))

    def quantile(self, share: float) -> float:
        """Days within which this share of the runs was done, between two runs on the straight line."""
        place = share * (len(self.days) - 1)
        below, above = self.days[math.floor(place)], self.days[math.ceil(place)]
        return below if below == above else below + (place - math.floor(place)) * (above - below)


def require_progress(goodput: float) -> None:
    """That a run gets on at all.

    Raises:
        InputError: less than `LEAST_GOODPUT` of its time would be progress.
    """
    if goodput < LEAST_GOODPUT:
        raise InputError(
            f"the run would not get on: {100 * goodput:.2g}% of its time would be progress; save more often,"
            " save and restart faster, keep more spare nodes, or take fewer devices"
        )


def simulate(
    causes: Sequence[Cause],
    practice: Practice,
    work_days: float,
    runs: int = 1000,
    seed: int = 0,
    rate_spread: float = 0.0,
) -> Simulation:
    """Play a run many times.

    Args:
        causes: what interrupts it.
        practice: how it saves and comes back.
        work_days: days that its steps alone take.
        runs: how many times.
        seed: of everything drawn; the same seed gives the same days.
        rate_spread: the standard deviation of the logarithm of a factor on all unplanned rates, which each
            run draws for itself (`Rates.log_spread`); 0: the rates are certain.

    Raises:
        InputError: no work or no runs, or interruptions so frequent that the run would hardly get on.
    """
    import numpy as np

    check("days of work", work_days, above=True)
    check("simulated runs", runs, 1)
    check("spread of rates", rate_spread)
    practice = resolved(practice, causes)
    causes = [cause for cause in causes if cause.per_day]
    require_progress(expected(causes, practice).goodput)
    rng = np.random.default_rng(seed)
    factors = np.exp(rate_spread * rng.standard_normal(runs).clip(-FARTHEST, FARTHEST))
    mean = {factor: expected(at_rates(causes, factor), practice) for factor in set(factors.tolist())}
    unplanned = sum(cause.per_day for cause in causes if not cause.planned)
    events = np.array([mean[factor].days(work_days) * unplanned * factor for factor in factors.tolist()])
    play = _Play(causes, practice, work_days * DAY, factors[events <= MANY], rng)
    while play.event():
        pass
    return play.result(work_days, [(mean[f], f) for f in factors[events > MANY].tolist()])


@dataclass
class _Play:
    """All runs at one event after another. Times in seconds, arrays over the runs that are not done."""

    causes: list[Cause]
    practice: Practice
    work: float
    factors: "Array"
    rng: "np.random.Generator"
    done: list["Array"] = field(default_factory=list)

    def __post_init__(self) -> None:
        import numpy as np

        self.runs = len(self.factors)
        assert self.practice.interval is not None
        self.segment = self.practice.interval + self.practice.stall
        checkpoints = math.ceil(self.work / self.practice.interval - 1e-9) - 1
        self.end = self.work + checkpoints * self.practice.stall
        self.lost = dict.fromkeys(PARTS, 0.0)
        self.lost["stalls"] = self.runs * checkpoints * self.practice.stall
        self.counts = [0] * len(self.causes)
        zeros = np.zeros(self.runs)
        self.wall, self.place, self.saved, self.restart = zeros, zeros.copy(), zeros.copy(), zeros.copy()
        # Mean seconds between interruptions: a row for each cause. A Weibull law of scale a has the mean
        # a Γ(1 + 1/shape).
        self.scale = np.array(
            [
                DAY / cause.per_day / math.gamma(1 + 1 / cause.shape) / (1 if cause.planned else self.factors)
                + np.zeros(self.runs)
                for cause in self.causes
            ]
        ).reshape(len(self.causes), self.runs)
        self.shape = np.array([cause.shape for cause in self.causes])
        self.planned = np.array([cause.planned for cause in self.causes], dtype=bool)
        self.detect = np.array([cause.detect for cause in self.causes])
        self.repair = np.array([0.0 if cause.planned else cause.repair for cause in self.causes])
        # Seconds left on each cause's clock.
        self.left = self.scale * self.rng.standard_exponential(self.scale.shape) ** (1 / self.shape[:, None])
        self.pool = np.zeros((self.runs, self.practice.spares or 0))  # when each spare is there

    def event(self) -> bool:
        """Move every run to its next interruption, or to its end; False when all have ended."""
        import numpy as np

        if not self.causes or not len(self.wall):
            self.done.append(self.wall + self.end)
            return False
        planned = self.planned[:, None]
        ahead = self.left + planned * self.restart  # nobody plans to stop in the midst of a restart
        which = ahead.argmin(axis=0)
        gap = ahead[which, np.arange(len(which))]
        finish = self.restart + self.end - self.place
        if (ended := finish <= gap).any():
            self.done.append((self.wall + finish)[ended])
            self.lost["restarts"] += float(self.restart[ended].sum())
            self._keep(~ended)
            if not len(self.wall):
                return False
            which, gap = which[~ended], gap[~ended]
        restarting = np.minimum(gap, self.restart)
        self.left -= np.where(planned, gap - restarting, gap)
        again = self.rng.standard_exponential(len(which)) ** (1 / self.shape[which])
        runs = np.arange(len(which))
        self.left[which, runs] = self.scale[which, runs] * again
        for index, count in enumerate(np.bincount(which, minlength=len(self.causes))):
            self.counts[index] += int(count)
        self.lost["restarts"] += float(restarting.sum())
        self.place = self.place + gap - restarting
        self.wall = self.wall + gap
        self._down(which)
        return True

    def _down(self, which: "Array") -> None:
        """From the interruption to the next restart: what is kept, and how long nothing happens."""
        import numpy as np

        practice, planned = self.practice, self.planned[which]
        # The last checkpoint that is wholly written, unless the run began behind it.
        written = np.floor((self.place - practice.persist) / self.segment) * self.segment
        kept = np.where(planned, self.place, np.maximum(self.saved, written))
        self.lost["lost work"] += float((self.place - kept).sum())
        self.place = self.saved = kept
        save = np.where(planned, practice.stall + practice.persist, 0.0)
        self.lost["stalls"] += float(save.sum())
        detect = np.where(planned, 0.0, self.detect[which])
        self.lost["detection"] += float(detect.sum())
        wait = self._wait(which, self.wall + detect)
        self.lost["waiting for a node"] += float(wait.sum())
        self.wall = self.wall + save + detect + wait
        self.restart = np.full(len(which), practice.restart)

    def _wait(self, which: "Array", now: "Array") -> "Array":
        """Seconds until another node is in the broken one's place."""
        import numpy as np

        wait = np.zeros(len(which))
        taken = np.flatnonzero(self.repair[which] > 0)
        if not len(taken):
            return wait
        wait[taken] = self.practice.swap
        if self.practice.spares is None:
            return wait
        back = now[taken] + self.repair[which[taken]] * self.rng.standard_exponential(len(taken))
        if not self.practice.spares:
            wait[taken] += back - now[taken]
            return wait
        first = self.pool[taken].argmin(axis=1)
        there = self.pool[taken, first]
        # The broken node itself may be back before any other; then the pool stays as it is.
        self.pool[taken, first] = np.where(back < there, there, back)
        wait[taken] += np.maximum(np.minimum(back, there) - now[taken], 0.0)
        return wait

    def _keep(self, on: "Array") -> None:
        for name in ("wall", "place", "saved", "restart", "pool"):
            setattr(self, name, getattr(self, name)[on])
        self.left, self.scale = self.left[:, on], self.scale[:, on]

    def result(self, work_days: float, unplayed: list[tuple[Goodput, float]]) -> Simulation:
        """Put the played runs together with those that take their mean, each with its factor on the rates."""
        import numpy as np

        runs = self.runs + len(unplayed)
        days = np.concatenate(self.done) / DAY
        lost = {name: seconds / DAY for name, seconds in self.lost.items()}
        counts = dict(zip([cause.name for cause in self.causes], map(float, self.counts), strict=True))
        for mean, factor in unplayed:
            taken = mean.days(work_days)
            days = np.append(days, taken)
            for name, share in mean.lost.items():
                lost[name] += share * taken
            for cause in self.causes:
                counts[cause.name] += taken * cause.per_day * (1 if cause.planned else factor)
        assert self.practice.interval is not None
        return Simulation(
            work_days,
            self.practice.interval,
            tuple(np.sort(days).tolist()),
            {name: value / runs for name, value in lost.items()},
            {name: value / runs for name, value in counts.items()},
        )
