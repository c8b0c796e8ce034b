"""The page of `cupola plan --html`: the tables that it prints, and pictures of what `--json` does."""

import json
from typing import TYPE_CHECKING, Any

from cupola import json_lines
from cupola.cli.plan_facts import facts
from cupola.cli.plan_tables import (
    days_of,
    device_rows,
    devices_of,
    dollars_of,
    duration_of,
    flops_rows,
    interruption_lines,
    interval_of,
    memory_rows,
    note_lines,
    parameters_of,
    run_rows,
    scaling_lines,
    time_rows,
    verdict,
    what_if_rows,
)

if TYPE_CHECKING:
    from cupola.cli.planning import Planned

NARROW = 2
"""Stages whose tables stand beside the pictures; those of more need the page's width."""


def page(planned: "Planned", command: str) -> str:
    """The page as text.

    Args:
        command: that made it.
    """
    from cupola.report import plan_plots
    from cupola.report.page import page_template
    from cupola.report.plots import palette_css

    found = facts(planned)
    stages, run = found["stages"], planned.run
    names = [plan.request.name for plan in planned.plans]
    piped = [stage for stage in stages if stage["step"] and stage["layout"]["pipeline"] > 1]
    timelines = [plan_plots.timeline_svg(stage) for stage in piped]
    steps = time_rows(planned)
    return page_template("plan.html").render(
        name=planned.name,
        palette=palette_css(),
        verdict=sentence(planned),
        parameters=parameters_of(planned),
        devices=devices_of(planned),
        tiles=_tiles(planned),
        memory_picture=plan_plots.memory_svg(stages),
        memory=(["memory of a device", *names], memory_rows(planned.plans)),
        narrow=len(names) <= NARROW,
        fits=[line for plan in planned.plans for line in verdict(plan)],
        step=(["time", *names], steps) if steps else None,
        step_pictures=[plan_plots.step_svg(stages), *timelines],
        timelines=bool(timelines),
        run=(["", "", "90% interval"], run_rows(run)) if run else None,
        devices_pictures=plan_plots.devices_svgs(found["by_devices"], found["devices"])
        if len(planned.curve) > 1
        else [],
        by_devices=device_rows(planned.curve),
        goodput_pictures=_goodput(found["run"]),
        interruptions=[*interruption_lines(run), *_unplayed(planned)] if run else [],
        what_if=what_if_rows(*planned.what_if) if planned.what_if else None,
        flops=flops_rows(planned),
        notes=[*scaling_lines(planned), *note_lines(planned), *_sources(planned)],
        command=command,
        facts=json.dumps(json.loads(json_lines.as_line(found)), ensure_ascii=False, indent=1),
    )


def sentence(planned: "Planned") -> str:
    """Whether it fits, and what it takes."""
    over = [plan for plan in planned.plans if not plan.fits]
    one = len(planned.plans) == 1
    if not over:
        words = "It fits" if one else "Every stage fits"
    elif one:
        words = "It does not fit"
    else:
        words = f"{', '.join(plan.request.name for plan in over)} {'do' if len(over) > 1 else 'does'} not fit"
    run = planned.run
    if run is None:
        step = planned.plans[0].step
        rest = f"{duration_of(step.seconds.value)} a step" if step and one else ""
        if step and one:
            rest += f" ({interval_of(step.seconds, duration_of)}), {step.mfu:.0%} of peak"
        return f"{words}; {rest}." if rest else f"{words}."
    dollars = run.bill.dollars
    days = f"{days_of(run.days.value)} ({interval_of(run.days, days_of)})"
    price = f"{dollars_of(dollars.value)} ({interval_of(dollars, dollars_of)})" if dollars.value else ""
    would = "would take" if over else "takes"
    left_out = ", ".join(plan.request.name for plan in planned.plans if plan.course is None)
    whole = f"the run without {left_out}" if left_out else "the run"
    return f"{words}; {whole} {would} {days}{' and ' + price if price else ''}."


def _tiles(planned: "Planned") -> list[tuple[str, str, str]]:
    """The figures that a reader wants first: (figure, what it is, its interval)."""
    tiles = []
    run, first = planned.run, planned.plans[0]
    fullest = max(planned.plans, key=lambda plan: plan.memory.total)
    share = fullest.memory.total / fullest.hardware.memory
    tiles.append((f"{share:.0%}", "of the memory, at most", ""))
    if first.step is not None and len(planned.plans) == 1:
        step = first.step
        shown = duration_of(step.seconds.value)
        tiles.append((shown, "a step", interval_of(step.seconds, duration_of)))
        tiles.append((f"{step.mfu:.1%}", "of peak (MFU)", ""))
    if run is not None:
        happened, dollars = run.interruptions, run.bill.dollars
        tiles.append((days_of(run.days.value), "from first step to last", interval_of(run.days, days_of)))
        if happened.counted:
            goodput = interval_of(happened.goodput, lambda value: f"{value:.1%}")
            tiles.append((f"{happened.goodput.value:.1%}", "goodput", goodput))
        if dollars.value:
            tiles.append((dollars_of(dollars.value), "dollars", interval_of(dollars, dollars_of)))
    return tiles


def _goodput(run: dict[str, Any] | None) -> list[str]:
    from cupola.report.plan_plots import lost_svg, played_svg

    if run is None or not run["interruptions"]["counted"]:
        return []
    return [*([played_svg(run["played"])] if run["played"] else []), lost_svg(run["lost"])]


def _sources(planned: "Planned") -> list[str]:
    """Where the figures of the device are from."""
    hardware = planned.plans[0].hardware
    return [f"{hardware.name}, {what}: {source}" for what, source in hardware.sources.items()]


def _unplayed(planned: "Planned") -> list[str]:
    """How what is drawn came about."""
    run = planned.run
    if run is None or not run.interruptions.counted:
        return []
    played = run.interruptions.played
    if played is None:
        return ["played: not at all, the formula stands; --simulate 300 plays it so many times"]
    return [
        f"played: {len(played.days):,} times, each with rates of its own; {days_of(played.figure.value)} at"
        f" the median, {interval_of(played.figure, days_of)} for the middle nine tenths, at the best guess of"
        " the speed: the days of the run have the doubt in that as well"
    ]
