"""The whole run: days, interruptions, energy, dollars, from the seconds of its steps.

What its stages compute is its **work**. What checkpoints and interruptions add to it is `goodput` and
`simulation`, at the rates of `failures`; what it takes, `cost`.

Interruptions are counted where there is more than one node and more than an hour of work: a single machine
that fails is mended and started again, and no published count says how often.

What a checkpoint stands still for, how long writing one takes and how long a restart does are assumptions,
which the constants below name; state your own where it matters.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cupola.plan import flops
from cupola.plan.cost import Bill, Power, Purchase, Rent, bill
from cupola.plan.execution import Execution
from cupola.plan.failures import SCALED_NODE, rates
from cupola.plan.figure import Figure, check
from cupola.plan.goodput import (
    DAY,
    Cause,
    Practice,
    at_rates,
    causes_of,
    expected,
    goodput_figure,
    resolved,
)
from cupola.plan.hardware import Hardware
from cupola.plan.layout import Layout
from cupola.plan.request import Request
from cupola.plan.simulation import LEAST_GOODPUT, Simulation, require_progress, simulate
from cupola.plan.standing import Group, standing
from cupola.plan.work import Asked, StageRun, stage_run, together

BARRIER = 5.0
"""Seconds until all devices of a cluster have come to the same step and planned who writes what."""
TO_HOST = 10e9
"""Bytes a second from a device to its host's memory, where a checkpoint is copied before it is written."""
TO_STORAGE = 0.25e9
"""Bytes a second that one device's share of a checkpoint is written with, behind the training."""
TO_DISK = 0.5e9
"""The same on a single machine, which stands still for it."""
RESTART = 600.0
"""Seconds from the decision to restart until the first new step: scheduling, imports, connections,
compilation, weights. Llama 3's team and MegaScale's report minutes."""
LEAST_HOURS = 1.0
"""Of work, below which interruptions are not counted."""
PLAYED, FEW = 300, 200
"""How many times a run is played by default, where no more unplanned interruptions than these are expected.
Of more, luck and bad luck even out, and what is left is the doubt in their rates, which needs no playing."""


@dataclass(frozen=True)
class Settings:
    """What can be stated beside the recipe; None: an assumption of this module.

    Attributes:
        stall, restart: seconds.
        interval: seconds of work between checkpoints; None: the recipe's, or the best where there is none.
        spares: nodes that stand ready; None: one is always at hand.
        simulate: how many times the run is played; 0: the closed form alone; None: `PLAYED` times where
            chance counts.
    """

    stall: float | None = None
    restart: float | None = None
    interval: float | None = None
    spares: int | None = None
    simulate: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Interruptions:
    """What interruptions and checkpoints make of the work.

    Attributes:
        counted: whether any are; `why` they are not, or at what interval they are.
        practice: with its interval resolved.
        checkpoint_bytes: of one, the whole model's.
        goodput: share of time that becomes progress, with the doubt in the rates.
        lost: the other shares, by what they go to.
        number: interruptions of the run by cause; means.
        best: the interval of least time in seconds, and the goodput that it would have.
        played: what came of the run when it was played, at the best guess of its speed; None: it wasn't.
    """

    counted: bool
    why: str
    practice: Practice
    causes: tuple[Cause, ...]
    checkpoint_bytes: float
    goodput: Figure
    lost: Mapping[str, float]
    number: Mapping[str, float]
    best: tuple[float, float] | None = None
    played: Simulation | None = None


@dataclass(frozen=True)
class Campaign:
    """A run from the first step to the last.

    Attributes:
        stages: in order.
        work: days without interruptions and checkpoints.
        days: with them.
        bill: device-hours, energy, carbon, dollars.
    """

    stages: tuple[StageRun, ...]
    work: Figure
    interruptions: Interruptions
    days: Figure
    bill: Bill

    @property
    def flops(self) -> dict[flops.Name, float]:
        """Of all stages, by convention."""
        return {name: sum(stage.flops[name] for stage in self.stages) for name in flops.CONVENTIONS}

    @property
    def tokens(self) -> int:
        return sum(stage.course.tokens for stage in self.stages)

    @property
    def steps(self) -> int:
        return sum(stage.course.steps for stage in self.stages)


def checkpoint_bytes(request: Request, execution: Execution) -> float:
    """Of a checkpoint: fp32 weights and the optimizer's states, each once."""
    run = request.run(Layout(), execution)
    groups = [run.outside(run.ranks[0]), *run.by_layer]
    parameters, _, masters, states = standing(functools.reduce(Group.plus, groups), Layout(), execution)
    return (masters or parameters) + states


def practice(size: float, layout: Layout, on_cpu: bool, settings: Settings) -> Practice:
    """How the run saves and comes back, as stated or by the assumptions of this module.

    Args:
        size: bytes of a checkpoint.
    """
    if settings.interval is not None:
        check("checkpoint interval in seconds", settings.interval, above=True)
    share = size / layout.devices
    stall, persist = size / TO_DISK, 0.0
    if not on_cpu:
        stall, persist = BARRIER + share / TO_HOST, share / TO_STORAGE
    stall = stall if settings.stall is None else settings.stall
    if settings.interval is not None:
        persist = min(persist, settings.interval)
    restart = RESTART if settings.restart is None else settings.restart
    return Practice(stall, restart, settings.interval, persist, spares=settings.spares)


def campaign(
    stages: Sequence[Asked],
    hardware: Hardware,
    settings: Settings,
    power: Power,
    grid: float,
    price: Rent | Purchase,
    of_recipe: bool,
) -> Campaign:
    """A run of these stages, one after the other on the same devices.

    Args:
        grid: kg of CO2 equivalent per kWh.
        of_recipe: checkpoints are as often as the recipe says, unless stated.

    Raises:
        InputError: a setting that can't be; interruptions so frequent that the run would not get on.
    """
    runs = tuple(stage_run(asked, hardware) for asked in stages)
    work = together([run.work for run in runs])
    layout = stages[0].layout
    size = max(checkpoint_bytes(asked.request, asked.execution) for asked in stages)
    saving = practice(size, layout, hardware.name == "cpu", settings)
    saves = sum(run.course.saves for run in runs)
    nodes = -(-layout.devices // SCALED_NODE)
    if hardware.name == "cpu" or nodes == 1 or work.value < 3600 * LEAST_HOURS:
        few = "one node" if nodes == 1 else f"less than {LEAST_HOURS:g} hour of work"
        happened, days = _undisturbed(work, saving, saves, size, few)
    else:
        every = work.value / saves if of_recipe else None
        happened, days = _disturbed(work, saving, every, size, layout.devices, settings)
    lost = happened.lost
    waiting = lost.get("detection", 0) + lost.get("waiting for a node", 0) + lost.get("restarts", 0)
    return Campaign(
        runs,
        work.times(1 / DAY),
        happened,
        days,
        bill(layout.devices, days, power, grid, price, busy=1 - waiting),
    )


def _undisturbed(
    work: Figure, saving: Practice, saves: int, size: float, why: str
) -> tuple[Interruptions, Figure]:
    """Nothing fails; checkpoints are as many as asked for."""
    every = saving.interval or work.value / saves
    stalls = saving.stall * max(1.0, work.value / every)
    share = work.value / (work.value + stalls)
    saving = replace(saving, interval=every, persist=min(saving.persist, every))
    found = Interruptions(False, why, saving, (), size, Figure.of(share), {"stalls": 1 - share}, {})
    return found, work.times(1 / DAY / share)


def _disturbed(
    work: Figure, saving: Practice, every: float | None, size: float, devices: int, settings: Settings
) -> tuple[Interruptions, Figure]:
    """At the rates of published runs.

    Args:
        every: seconds of work between the recipe's checkpoints; None: there is no recipe.
    """
    rate = rates(devices)
    causes = causes_of(rate)
    best = resolved(replace(saving, interval=None), causes)
    assert best.interval is not None
    why = "stated" if saving.interval else "the best there is"
    chosen = resolved(saving, causes)
    if saving.interval is None and every is not None:
        own = replace(saving, interval=every, persist=min(saving.persist, every))
        if expected(at_rates(causes, rate.cluster.high), own).goodput >= LEAST_GOODPUT:
            chosen, why = own, "the recipe's"
        else:
            why = "the best there is; at the recipe's the run would hardly get on"
    mean = expected(causes, chosen)
    require_progress(mean.goodput)
    share = goodput_figure(causes, chosen, rate.cluster)
    share = replace(share, low=max(share.low, LEAST_GOODPUT))  # else a cluster so bad would never end
    days = work.times(1 / DAY)
    number = {cause.name: cause.per_day * mean.days(days.value) for cause in causes}
    few = sum(number[cause.name] for cause in causes if not cause.planned) <= FEW
    times = PLAYED * few if settings.simulate is None else settings.simulate
    played = None
    if times:
        played = simulate(causes, chosen, days.value, times, settings.seed, rate_spread=rate.log_spread)
        share, number = played.goodput, {cause.name: played.interruptions[cause.name] for cause in causes}
    found = Interruptions(
        True,
        why,
        chosen,
        tuple(causes),
        size,
        share,
        mean.lost,
        number,
        (best.interval, expected(causes, best).goodput),
        played,
    )
    return found, days.over(share)
