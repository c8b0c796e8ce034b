"""A run played by a plain loop, to compare formulas and the simulation with."""

import math
import random

from cupola.plan.goodput import DAY, Cause, Practice


def plain(causes: list[Cause], practice: Practice, work: float, draw: random.Random) -> float:
    """Seconds that one run takes: a loop over stretches of work, checkpoints and interruptions, one at a
    time.

    Exponential interruptions, which have no memory: a new time to the next is drawn for every phase.
    """
    now = done = saved = 0.0
    writing: list[tuple[float, float]] = []  # (when written, work in it)
    unplanned = [cause for cause in causes if not cause.planned]
    planned = sum(cause.per_day for cause in causes if cause.planned) / DAY
    rate = sum(cause.per_day for cause in unplanned) / DAY

    def next_in(per_second: float) -> float:
        return draw.expovariate(per_second) if per_second else math.inf

    def fail(at: float) -> float:
        """Until the job runs again."""
        while True:
            (cause,) = draw.choices(unplanned, [cause.per_day for cause in unplanned])
            at += cause.detect + (practice.swap if cause.repair else 0.0)
            if practice.spares == 0 and cause.repair:
                at += draw.expovariate(1 / cause.repair)
            struck = next_in(rate)
            if struck >= practice.restart:
                return at + practice.restart
            at += struck

    while True:
        boundary = (math.floor(done / practice.interval + 1e-9) + 1) * practice.interval
        stretch = min(boundary, work) - done
        last = boundary >= work
        length = stretch + (0 if last else practice.stall)
        struck, stopped = next_in(rate), next_in(planned)
        if min(struck, stopped) >= length:
            now, done = now + length, done + stretch
            if last:
                return now
            writing.append((now + practice.persist, done))
            continue
        if stopped < struck:
            # Saved where it stands; whether a stall is cut short by it or not is of no account here.
            done += min(stopped, stretch)
            now += stopped + practice.stall + practice.persist
            saved, writing = done, []
            struck = next_in(rate)
            now = now + practice.restart if struck >= practice.restart else fail(now + struck)
            if done >= boundary - 1e-6:
                now += max(length - stopped, 0)
            continue
        now += struck
        saved = max([saved] + [amount for when, amount in writing if when <= now])
        done, writing, now = saved, [], fail(now)


CASES = {
    "crashes": ([Cause("a", 8.0)], Practice(60, 900)),
    "rare": ([Cause("a", 0.3)], Practice(120, 1800)),
    "noticed late": ([Cause("a", 6, detect=60), Cause("b", 1, detect=1800)], Practice(5, 600)),
    "written late": ([Cause("a", 10.0)], Practice(10, 300, persist=800)),
    "hopeless": ([Cause("a", 60.0)], Practice(60, 900)),
    "no spares": ([Cause("a", 1.0, repair=7200), Cause("b", 2.0)], Practice(30, 600, spares=0)),
    "swap": ([Cause("a", 5.0, repair=7200)], Practice(30, 600, swap=240)),
}
