"""What interruptions cost: the best checkpoint interval, and the share of time that becomes lasting progress.

**Goodput** is the time that the run's steps would take without any interruption or checkpoint, divided by the
time that it takes. All times are in seconds unless a name says days; rates are per day.

What is lost: a *stall* at every checkpoint (what the trainer feels, not how long writing takes behind it);
and at every interruption the work since the last checkpoint that was wholly written, the time until it is
noticed, the wait for another node, and the restart. A planned interruption saves first and loses no work.

The model of `expected` is exact for interruptions that come as a Poisson process in the time in which the job
computes, stalls or restarts (while it is down and nobody has noticed, or it waits for a node, nothing more
can fail). With s = interval + stall, rate λ, p the time that a checkpoint takes to be written, D the mean
time until a restart begins and R its length:

    time of a restart that holds, from the interruption on   X = e^(λR) D + (e^(λR) - 1) / λ
    time to the next written checkpoint after a restart      F = (e^(λ(s + p)) - 1) (1/λ + X)
    the same in the midst of a run                           G = (1 - e^(-λs)) (1/λ + X + F)
    goodput                                                  interval / G

With p = D = 0 this is Daly's complete cost function (2006). `waste` is the first-order one that is usually
quoted. `cupola.plan.simulation` plays the same rules event by event, where no formula goes.

Sources: Young, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22, 2006.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cupola.errors import InputError
from cupola.plan.failures import KINDS, Kind, Rates
from cupola.plan.figure import Figure, check

DAY = 86400.0

DETECT: dict[Kind, float] = {"hardware": 60.0, "software": 600.0, "operator": 0.0}
"""Seconds until an interruption is noticed: a part that breaks ends a process at once, a hang ends with a
timeout, which is 10 minutes for NCCL by PyTorch's default."""
REPAIR = 12 * 3600.0
"""Seconds until a node is back. An assumption: OPT's cloud took "hours for a single machine"."""


@dataclass(frozen=True)
class Cause:
    """One way in which a run is interrupted.

    Attributes:
        per_day: interruptions per day of the whole run.
        detect: seconds until it is noticed.
        repair: mean seconds until the node that it takes away is back; 0: it takes none.
        planned: the run saves first, and stops.
        shape: of the Weibull law of the times between interruptions, in the simulation; 1 is exponential.
            Below 1 they come in bunches: 0.7 to 0.8 on large machines (Schroeder and Gibson, DSN 2006).
    """

    name: str
    per_day: float
    detect: float = 0.0
    repair: float = 0.0
    planned: bool = False
    shape: float = 1.0

    def __post_init__(self) -> None:
        for what, value in (("interruptions per day", self.per_day), ("detect", self.detect)):
            check(f"{self.name}: {what}", value)
        check(f"{self.name}: repair", self.repair)
        check(f"{self.name}: shape", self.shape, above=True)


@dataclass(frozen=True)
class Practice:
    """How a run saves and comes back.

    Attributes:
        stall: seconds that training stands still for a checkpoint.
        restart: seconds from the decision to restart until the first new step.
        interval: seconds of work between checkpoints; None: the best one.
        persist: seconds until a checkpoint is wholly written, behind the training; an interval is never
            shorter.
        swap: seconds that putting a spare node in a broken one's place adds.
        spares: nodes that stand ready; the job waits for a repair when all are used up. None: one is always
            at hand; 0: the job always waits.
    """

    stall: float
    restart: float
    interval: float | None = None
    persist: float = 0.0
    swap: float = 0.0
    spares: int | None = None

    def __post_init__(self) -> None:
        for what in ("stall", "restart", "persist", "swap"):
            check(f"{what} in seconds", getattr(self, what))
        if self.spares is not None:
            check("spares", self.spares)
        if self.interval is not None:
            check("checkpoint interval in seconds", self.interval, above=True)
            if self.interval < self.persist:
                raise InputError(
                    f"checkpoint interval {self.interval:g} s: below the {self.persist:g} s that writing"
                    f" one takes; make it {self.persist:g} s at least"
                )


@dataclass(frozen=True)
class Goodput:
    """What is expected.

    Attributes:
        goodput: the share of time that becomes progress.
        interval: seconds of work between checkpoints.
        lost: the other shares of time, by what they went to; with `goodput` they add up to 1.
    """

    goodput: float
    interval: float
    lost: dict[str, float]

    def days(self, work_days: float) -> float:
        """How long a run takes whose steps alone take so many days."""
        check("days of work", work_days)
        return work_days / self.goodput if self.goodput > 0 else math.inf


def causes_of(
    rates: Rates, detect: dict[Kind, float] = DETECT, repair: float = REPAIR, shape: float = 1.0
) -> list[Cause]:
    """One cause for each kind of published failures."""
    return [
        Cause(
            kind,
            getattr(rates, kind).value,
            detect[kind],
            repair if kind == "hardware" else 0.0,
            planned=kind == "operator",
            shape=1.0 if kind == "operator" else shape,
        )
        for kind in KINDS
    ]


def young(stall: float, mtti: float) -> float:
    """Seconds of work between checkpoints, to first order: sqrt(2 stall MTTI) (Young 1974)."""
    return math.sqrt(2 * stall * mtti)


def daly_first(stall: float, mtti: float, restart: float) -> float:
    """Daly's first-order interval, sqrt(2 stall (MTTI + restart)) - stall: restarts count as exposed."""
    return max(math.sqrt(2 * stall * (mtti + restart)) - stall, 0.0)


def daly(stall: float, mtti: float) -> float:
    """Daly's higher-order interval (2006, equation 37); MTTI itself where the stall is twice that or more."""
    if stall >= 2 * mtti:
        return mtti
    x = stall / (2 * mtti)
    return math.sqrt(2 * stall * mtti) * (1 + math.sqrt(x) / 3 + x / 9) - stall


def best_interval(stall: float, mtti: float) -> float:
    """The interval of least time for exponential failures: the root of 1 - τ/M = e^(-(τ + stall)/M), by
    bisection.

    In closed form M (1 + W(-e^(-stall/M - 1))), with Lambert's W: where the derivative of Daly's complete
    cost function is zero. It doesn't depend on the restart. Infinite without failures, 0 without a stall.
    """
    if mtti == math.inf:
        return math.inf
    if stall == 0:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if middle + math.expm1(-middle - stall / mtti) < 0 else (low, middle)
    return mtti * (low + high) / 2


def waste(stall: float, mtti: float, restart: float, interval: float | None = None) -> float:
    """The share of time lost, to first order: stall/τ + (τ/2 + restart)/MTTI; τ is Young's unless stated."""
    interval = young(stall, mtti) if interval is None else interval
    return (stall / interval if stall else 0.0) + (interval / 2 + restart) / mtti


def mtti_of(causes: Sequence[Cause]) -> float:
    """Mean seconds to an unplanned interruption."""
    total = sum(cause.per_day for cause in causes if not cause.planned)
    return DAY / total if total else math.inf


def resolved(practice: Practice, causes: Sequence[Cause]) -> Practice:
    """The practice with its interval: the stated one, or the best that is not shorter than `persist`.

    Where nothing fails, or a checkpoint costs nothing, an interval of a day or of a second stands for the
    limit.
    """
    if practice.interval is not None:
        return practice
    best = min(max(best_interval(practice.stall, mtti_of(causes)), 1.0), DAY)
    return replace(practice, interval=max(best, practice.persist))


def node_wait(causes: Sequence[Cause], practice: Practice) -> float:
    """Mean seconds that an interruption which takes a node away waits for another.

    With k spares the nodes in repair are a birth and death process up to k + 1, where the job waits: a
    failure finds all k in repair with Erlang's loss probability B(k, failures per day x mean repair), and
    then waits for the first of k + 1 repairs. Exact for exponential repairs when the job is hardly ever
    down; else a little too long, as nothing breaks while it is down.
    """
    taking = [cause for cause in causes if cause.repair and not cause.planned]
    per_day = sum(cause.per_day for cause in taking)
    if practice.spares is None or not per_day:
        return practice.swap if taking else 0.0
    repair = sum(cause.per_day * cause.repair for cause in taking) / per_day
    load = per_day * repair / DAY
    blocked = 1.0
    for k in range(1, practice.spares + 1):
        blocked = load * blocked / (k + load * blocked)
    return practice.swap + blocked * repair / (practice.spares + 1)


def expected(causes: Sequence[Cause], practice: Practice) -> Goodput:
    """Goodput in the long run, by the formula of the module's docstring.

    Weibull shapes are not seen. A planned interruption adds a stall, the writing and a restart, in which
    failures strike as in any.
    """
    practice = resolved(practice, causes)
    interval = practice.interval
    assert interval is not None
    segment = interval + practice.stall
    rate = 1 / mtti_of(causes)
    planned = sum(cause.per_day for cause in causes if cause.planned) / DAY
    detect = _mean_over_unplanned(causes, lambda cause: cause.detect)
    waits = _mean_over_unplanned(causes, lambda cause: float(cause.repair > 0)) * node_wait(causes, practice)
    try:
        # Per written checkpoint: seconds computing or stalled, and interruptions while at that.
        fresh = _growth(rate, segment + practice.persist)
        running = -_growth(rate, -segment) * (1 + rate * fresh)
        failures = rate * running
        stops = planned * running
        # Each calls for a restart that holds, which takes so many attempts' time and further interruptions.
        restarting = _growth(rate, practice.restart)
        attempts_failed = rate * restarting
        down = failures + (failures + stops) * attempts_failed
        parts = {
            "stalls": practice.stall + stops * (practice.stall + practice.persist),
            "lost work": running - segment,
            "detection": down * detect,
            "waiting for a node": down * waits,
            "restarts": (failures + stops) * restarting,
        }
        total = interval + sum(parts.values())
    except OverflowError:  # failures come so fast that no checkpoint is ever reached
        return Goodput(0.0, interval, {"lost work": 1.0})
    return Goodput(interval / total, interval, {name: part / total for name, part in parts.items()})


def at_rates(causes: Sequence[Cause], factor: float) -> list[Cause]:
    """The causes with all unplanned rates multiplied by a factor."""
    return [cause if cause.planned else replace(cause, per_day=cause.per_day * factor) for cause in causes]


def goodput_figure(causes: Sequence[Cause], practice: Practice, cluster: Figure) -> Figure:
    """Goodput with the interval that the rates' own leaves, at the checkpoint interval of the best guess.

    Args:
        causes: at the best guess of their rates.
        practice: how the run saves and comes back.
        cluster: a factor on all unplanned rates, such as `Rates.cluster`.
    """
    practice = resolved(practice, causes)
    factors = (cluster.value, cluster.high, cluster.low)
    return Figure(*(expected(at_rates(causes, factor), practice).goodput for factor in factors))


def _growth(rate: float, seconds: float) -> float:
    """(e^(rate x seconds) - 1) / rate, and its limit without failures."""
    return math.expm1(rate * seconds) / rate if rate else seconds


def _mean_over_unplanned(causes: Sequence[Cause], of: Callable[[Cause], float]) -> float:
    unplanned = [cause for cause in causes if not cause.planned]
    total = sum(cause.per_day for cause in unplanned)
    return sum(cause.per_day * of(cause) for cause in unplanned) / total if total else 0.0


def what_if(
    causes: Sequence[Cause], practice: Practice, stalls: Sequence[float], restarts: Sequence[float]
) -> list[list[Goodput]]:
    """What is expected at other stalls (rows) and restarts (columns), each at its best interval."""
    return [
        [
            expected(causes, replace(practice, stall=stall, restart=restart, interval=None))
            for restart in restarts
        ]
        for stall in stalls
    ]
