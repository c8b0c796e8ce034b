"""What `cupola plan` shows people: memory, time, FLOPs, and the run with what it takes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from cupola.cli.options import show_table
from cupola.display import count, duration

if TYPE_CHECKING:
    from cupola.cli.planning import Plan, Planned
    from cupola.plan.campaign import Campaign
    from cupola.plan.devices import Point
    from cupola.plan.figure import Figure
    from cupola.plan.layout import Layout
    from cupola.plan.work import StageRun

GIB = 2.0**30
DAY = 86400.0
CALLED = {
    "6nd": "6nd: 6 N D",
    "palm": "palm: 6 N + 12 L d s",
    "bridge": "bridge: no input embedding, causal",
    "megatron": "megatron: less recomputation",
    "megatron_recompute": "megatron_recompute: with it",
    "exact": "exact: every matrix, causal",
    "exact_full": "exact_full: without the mask",
}
"""Conventions in a few words; `plan.flops.CONVENTIONS` defines them."""
PARTS = {"attention": "attention, scans"}
"""Parts of a step that are called otherwise for people."""


def show(planned: "Planned", show_what_if: bool) -> None:
    """All of it."""
    plans, run = planned.plans, planned.run
    click.echo(f"{planned.name}: {parameters_of(planned)}\non {devices_of(planned)}\n")
    names = [plan.request.name for plan in plans]
    show_table(["memory of a device", *names], memory_rows(plans))
    click.echo()
    for plan in plans:
        for line in verdict(plan):
            click.echo(line)
    click.echo()
    if rows := time_rows(planned):
        show_table(["time", *names], rows)
        click.echo()
    show_table(*flops_rows(planned))
    if run is not None:
        click.echo()
        show_table(["the run", "", "90% interval"], run_rows(run))
        click.echo()
        for line in interruption_lines(run):
            click.echo(line)
    if show_what_if:
        click.echo()
        if planned.what_if is None:
            click.echo("what if: no interruptions are counted, so that stalls and restarts decide nothing")
        else:
            show_table(*what_if_rows(*planned.what_if))
    for line in [*scaling_lines(planned), *note_lines(planned)]:
        click.echo(line)


def parameters_of(planned: "Planned") -> str:
    """How many parameters there are."""
    from cupola.cli.plan_facts import counts

    sizes = counts(planned.plans[0])
    active = f", {count(sizes['active'])} met by a token" if sizes["active"] < sizes["total"] else ""
    return (
        f"{count(sizes['total'])} parameters ({sizes['total']:,}){active},"
        f" {count(sizes['embedding'])} in the embedding"
    )


def devices_of(planned: "Planned") -> str:
    """Of what, how many."""
    first = planned.plans[0]
    many = f"{first.devices:,} x {first.hardware.name}" if first.devices > 1 else first.hardware.name
    return f"{many} of {gib(first.hardware.memory)}"


def memory_rows(plans: Sequence["Plan"]) -> list[list[str]]:
    """How it is spread, then bytes; lines in which every stage has nothing are left out."""
    rows = [
        ["row length", *(f"{plan.request.sequence_length:,}" for plan in plans)],
        ["layout", *(_layout(plan.layout) for plan in plans)],
        ["precision, optimizer", *(f"{p.execution.precision}, {p.request.optimizer.kind}" for p in plans)],
    ]
    found = [plan.memory.components() for plan in plans]
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one.get(name, 0.0) for one in found]
        if any(values):
            rows.append([name, *map(gib, values)])
    totals = [plan.memory_figure for plan in plans]
    rows.append(["total", *(gib(total.value) for total in totals)])
    return [*rows, ["90% interval", *(interval_of(total, gib) for total in totals)]]


def _layout(layout: "Layout") -> str:
    names = {"data": "dp", "tensor": "tp", "pipeline": "pp", "context": "cp", "expert": "ep"}
    words = [f"{short}{value}" for name, short in names.items() if (value := getattr(layout, name)) > 1]
    words += [f"shard{layout.shard}"] if layout.shards > 1 else []
    words += [f"{layout.schedule}"] if layout.pipeline > 1 else []
    words += [layout.checkpointing] if layout.checkpointing != "none" else []
    return " ".join([*words, f"{layout.rows} row{'s' if layout.rows > 1 else ''}"])


def verdict(plan: "Plan") -> list[str]:
    """Whether it fits, and what would."""
    available, total = plan.hardware.memory, plan.memory.total
    rank = f" on pipeline rank {plan.memory.rank}" if plan.layout.pipeline > 1 else ""
    if plan.fits:
        return [f"{plan.request.name}: fits{rank}, {1 - total / available:.0%} of the memory to spare"]
    if total <= available:
        words = f"{1 - total / available:.1%} to spare{rank}, less than the margin of {plan.margin:.0%}"
    else:
        words = f"{gib(total - available)} too much{rank}"
    lines = [f"{plan.request.name}: does not fit, {words}"]
    for cure in plan.cures:
        lines.append(f"  would fit, at {gib(cure.total)}: {cure.words}")
    return (
        lines if plan.cures else [*lines, "  nothing that was tried would fit; take devices with more memory"]
    )


def time_rows(planned: "Planned") -> list[list[str]]:
    """A step and what it goes to, then the stage's work; a column each, empty where nothing is known."""
    plans = planned.plans
    runs = iter(planned.run.stages if planned.run else ())
    done: list[StageRun | None] = [next(runs) if plan.course else None for plan in plans]
    steps = [plan.step for plan in plans]
    if not any(steps):
        return []

    def line(name: str, cells: list[str]) -> list[list[str]]:
        return [[name, *cells]] if any(cells) else []

    rows = line("tokens of a step", [f"{one.tokens:,}" if one else "" for one in steps])
    for part in dict.fromkeys(part for one in steps if one for part in one.parts):
        values = [one.parts.get(part, 0.0) if one else 0.0 for one in steps]
        if any(values):
            called = PARTS.get(part, part)
            rows.append([f"  {called}", *(duration_of(value) if value else "" for value in values)])
    rows += line("a step", [duration_of(one.seconds.value) if one else "" for one in steps])
    rows += line("90% interval", [interval_of(one.seconds, duration_of) if one else "" for one in steps])
    rows += line("share of peak (MFU)", [f"{one.mfu:.1%}" if one else "" for one in steps])
    if any(done):
        rows += line("steps", [f"{one.course.steps:,}" if one else "" for one in done])
        rows += line("tokens", [count(one.course.tokens) if one else "" for one in done])
        for kind in ("steps", "evaluation", "other passes", "sampling"):
            values = [one.seconds[kind].value if one else 0.0 for one in done]
            if any(values) and kind != "steps":
                rows.append([f"  {kind}", *(duration_of(value) if value else "" for value in values)])
        rows += line("work", [duration_of(one.work.value) if one else "unknown" for one in done])
    return rows


def flops_rows(planned: "Planned") -> tuple[list[str], list[list[str]]]:
    """Of the run where that is known, else of a token."""
    from cupola.cli.plan_facts import flops_of_token

    if planned.run is not None:
        found = {str(name): value for name, value in planned.run.flops.items()}
        return ["FLOPs of the run, by convention", ""], [
            [CALLED.get(n, n), f"{v:.3g}"] for n, v in found.items()
        ]
    plans = planned.plans
    columns = [flops_of_token(plan) for plan in plans]
    head = ["FLOPs of a token, by convention", *(plan.request.name for plan in plans)]
    return head, [[CALLED.get(n, n), *(f"{one[n]:.3g}" for one in columns)] for n in columns[0]]


def run_rows(run: "Campaign") -> list[list[str]]:
    """The run and what it takes, with intervals."""

    def row(name: str, figure: "Figure", shown: Callable[[float], str]) -> list[str]:
        exact = figure.low == figure.high
        return [name, shown(figure.value), "" if exact else interval_of(figure, shown)]

    bill = run.bill
    return [
        ["steps", f"{run.steps:,}", ""],
        ["tokens", count(run.tokens), ""],
        row("work", run.work, days_of),
        row("goodput", run.interruptions.goodput, lambda share: f"{share:.1%}"),
        row("from first step to last", run.days, days_of),
        row("device-hours", bill.device_hours, _number),
        row("energy", bill.energy, lambda value: _scaled(value, "MWh", "kWh")),
        row("CO2 equivalent", bill.carbon, lambda value: _scaled(value, "t", "kg")),
        row("dollars", bill.dollars, dollars_of),
    ]


def device_rows(points: Sequence["Point"]) -> tuple[list[str], list[list[str]]]:
    """The run on other numbers of devices."""
    rows = []
    for point in points:
        run = point.run
        rows.append(
            [
                f"{point.devices:,}",
                "yes" if point.fits else "no",
                days_of(run.days.value),
                interval_of(run.days, days_of),
                f"{run.interruptions.goodput.value:.1%}",
                _number(run.bill.device_hours.value),
                dollars_of(run.bill.dollars.value),
                interval_of(run.bill.dollars, dollars_of),
            ]
        )
    head = ["devices", "fits", "days", "90% interval", "goodput", "device-hours", "dollars", "90% interval"]
    return head, rows


def interruption_lines(run: "Campaign") -> list[str]:
    """What interrupts it, and how it saves."""
    happened = run.interruptions
    practice = happened.practice
    assert practice.interval is not None
    if not happened.counted:
        return [f"interruptions: none are counted on {happened.why}; a failure costs a restart by hand"]
    causes = ", ".join(f"{name} {_number(number)}" for name, number in happened.number.items())
    lost = ", ".join(f"{name} {share:.1%}" for name, share in happened.lost.items() if share >= 0.0005)
    lines = [
        f"interruptions: {causes}; time lost to {lost}",
        f"checkpoints: every {duration_of(practice.interval)} of work, {happened.why}; training stands still"
        f" for {duration_of(practice.stall)}, a restart takes {duration_of(practice.restart)}",
    ]
    if happened.best and not happened.why.startswith("the best"):
        interval, goodput = happened.best
        lines.append(f"  best: every {duration_of(interval)}, for a goodput of {goodput:.1%}")
    return lines


def what_if_rows(
    stalls: Sequence[float], restarts: Sequence[float], goodput: Sequence[Sequence[float]]
) -> tuple[list[str], list[list[str]]]:
    """Goodput by stall and restart."""
    rows = [
        [duration_of(stall), *(f"{share:.1%}" for share in row)]
        for stall, row in zip(stalls, goodput, strict=True)
    ]
    return ["goodput: stall, and restart", *map(duration_of, restarts)], rows


def note_lines(planned: "Planned") -> list[str]:
    """What is not in it, what was taken for granted, what to mind."""
    from cupola.plan.host import notes as host_notes

    plans = planned.plans
    said = [f"not in it: {plan.unknown}" for plan in plans if plan.unknown]
    said += [f"note: {note}" for plan in plans for note in plan.notes]
    said += [f"note: {note}" for note in host_notes(plans[0].hardware.name)]
    return list(dict.fromkeys([*said, *(f"warning: {words}" for plan in plans for words in plan.warnings)]))


def scaling_lines(planned: "Planned") -> list[str]:
    """How far from compute-optimal it is."""
    from cupola.plan.advice import WORTHWHILE

    advice = planned.advice
    if advice is None:
        return []
    best = advice.best
    if advice.ratio >= 1.5:
        words = f"{advice.ratio:.3g} times that: over-trained, for a model that is cheaper to use"
    elif advice.ratio <= 0.67:
        words = f"{advice.ratio:.2g} of that: a smaller model would learn more from the same compute"
    else:
        words = "about that"
    lines = [
        f"scaling: {count(advice.optimal_tokens)} tokens are compute-optimal for this size ({advice.source});"
        f" these are {words}",
        f"  the same compute, best spent: {count(best.parameters)} parameters on {count(best.tokens)} tokens",
    ]
    if advice.cheapest is not None and advice.saved is not None:
        size, length = count(advice.cheapest.parameters), count(advice.cheapest.tokens)
        lines.append(
            f"  with its use, the same loss is cheapest at {size} parameters on {length} tokens:"
            f" {advice.saved:.1%} fewer FLOPs in all (Sardana et al. 2023)"
        )
    if advice.passes is None or advice.worth is None:
        return [
            *lines,
            "  how much different text there is, is not known; --corpus says how often it is read",
        ]
    lines.append(f"  {advice.passes:.2g} passes over the corpus, worth {count(advice.worth)} fresh tokens")
    if advice.passes > WORTHWHILE:
        lines[-1] += f"; up to {WORTHWHILE:.0f} are nearly as good as fresh text (Muennighoff et al. 2023)"
    return lines


def interval_of(figure: "Figure", shown: Callable[[float], str]) -> str:
    """A figure's interval in words."""
    return f"{shown(figure.low)} to {shown(figure.high)}"


def duration_of(seconds: float) -> str:
    """Seconds as people say them: from milliseconds to years."""
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.3g}ms"
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds >= 1000 * DAY:
        return f"{seconds / DAY / 365.25:,.1f} years"
    return duration(seconds) if seconds < 2 * DAY else f"{seconds / DAY:,.1f} days"


def dollars_of(value: float) -> str:
    """Dollars, short."""
    return f"${count(value) if value >= 1000 else f'{value:.2f}'}"


def days_of(days: float) -> str:
    """Days as people say them."""
    return duration_of(days * DAY)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _scaled(value: float, large: str, small: str) -> str:
    """A thousandth of the large unit is the small one."""
    if value >= 0.1:
        return f"{value:,.0f} {large}" if value >= 100 else f"{value:.3g} {large}"
    return f"{1000 * value:.3g} {small}"


def gib(number: float) -> str:
    """Bytes in GiB."""
    return f"{number / GIB:,.2f} GiB" if number < 10 * GIB else f"{number / GIB:,.1f} GiB"
