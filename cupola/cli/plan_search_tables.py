"""What `cupola plan --search` prints, for people and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cupola.cli.options import show_table
from cupola.cli.plan_facts import figure_facts
from cupola.cli.plan_search import named
from cupola.cli.plan_tables import days_of, dollars_of, interval_of

if TYPE_CHECKING:
    from cupola.plan.frontier import Point
    from cupola.plan.layout import Layout
    from cupola.plan.request import Request
    from cupola.plan.search import Candidate, Found

GIB = 2.0**30
KINDS = {
    "impossible": "impossible",
    "rule": "left out by rule",
    "memory": "do not fit",
    "slower": "slower",
}
Reasons = Sequence[tuple[str, str]]


def scale_of(layout: "Layout", request: "Request") -> dict[str, int]:
    """What of a layout a recipe's `scale:` states."""
    return {
        "data": layout.data,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "microbatch_tokens": layout.rows * request.sequence_length,
    }


def show(found: "Found", reasons: Reasons, explain: bool) -> None:
    """The best layouts, why others are not taken, and the best as a recipe has it."""
    from cupola.plan.frontier import nearest
    from cupola.plan.search import summary

    question, request = found.question, found.question.request
    many = f"{question.devices:,} x {question.hardware.name}"
    batch = "" if request.batch is None else f", steps of {request.batch * request.sequence_length:,} tokens"
    click.echo(f"{request.name} on {many}: {found.looked:,} layouts{batch}\n")
    if found.best:
        show_table(
            ["layout", "memory", "step", "90% within", "MFU", "tokens/s/device", "slower"],
            [_row(one, found.best[0]) for one in found.best],
        )
    else:
        click.echo(f"no layout fits: {nearest(found.rejected)}")
    if reasons:
        click.echo("\nwhy not")
        width = max(len(layout) for layout, _ in reasons)
        for layout, words in reasons:
            click.echo(f"  {layout.ljust(width)}  {words}")
    click.echo("\nthe others")
    told = summary(found.rejected)
    if explain:
        for one in told:
            words = "" if one.words == one.title else f": {one.words}"
            click.echo(f"  {one.count:>7,}  {one.title}; nearest {named(one.layout)}{words}")
    else:
        for kind, title in KINDS.items():
            if count := sum(one.count for one in told if one.kind == kind):
                click.echo(f"  {count:>7,}  {title}")
        click.echo("  --explain says why each")
    if found.best:
        _show_options(found.best[0].layout)
    for note in [*request.notes, *_untried(found)]:
        click.echo(f"note: {note}")


def _untried(found: "Found") -> list[str]:
    """What might be faster still."""
    piped = bool(found.best) and found.best[0].layout.pipeline > 1
    if not piped or "schedule" in found.question.given:
        return []
    return ["zb-h2 and zb-v, which few programs have, are tried where they are stated: --schedule zb-v"]


def _row(one: "Candidate", best: "Candidate") -> list[str]:
    seconds = one.step.seconds
    return [
        named(one.layout),
        f"{one.memory.total / GIB:,.1f} GiB",
        _seconds(seconds.value),
        f"{_seconds(seconds.low)} to {_seconds(seconds.high)}",
        f"{one.step.mfu:.1%}",
        f"{one.rate:,.0f}",
        "" if one is best else f"{one.per_token / best.per_token - 1:.1%}",
    ]


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def _show_options(layout: "Layout") -> None:
    """The first as `cupola plan` takes it, for its whole plan."""
    sizes = [f"--{name} {getattr(layout, name)}" for name in ("data", "tensor", "pipeline", "context")]
    sizes += [f"--rows {layout.rows}"]
    sizes += [f"--shard {layout.shard}"] if layout.shards > 1 else []
    sizes += [f"--schedule {layout.schedule}"] if layout.pipeline > 1 else []
    sizes += [f"--chunks {layout.chunks}"] if layout.chunks > 1 else []
    sizes += [f"--expert {layout.expert}"] if layout.expert > 1 else []
    sizes += [f"--checkpointing {layout.checkpointing}"] if layout.checkpointing != "none" else []
    click.echo(f"\nthe first, for `cupola plan`: {' '.join(sizes)}")


def facts(found: "Found", reasons: Reasons) -> dict[str, Any]:
    """The same as JSON-able values."""
    from cupola.plan.search import summary

    question, request = found.question, found.question.request
    best = found.best[0].layout if found.best else None
    return {
        "stage": request.name,
        "hardware": question.hardware.model_dump(mode="json"),
        "devices": question.devices,
        "sequence_length": request.sequence_length,
        "batch_rows": request.batch,
        "margin": question.margin,
        "stated": dict(question.given),
        "looked": found.looked,
        "best": [_candidate(one) for one in found.best],
        "rejected": [
            {
                "kind": one.kind,
                "title": one.title,
                "count": one.count,
                "nearest": asdict(one.layout),
                "words": one.words,
            }
            for one in summary(found.rejected)
        ],
        "why": [{"layout": layout, "words": words} for layout, words in reasons],
        "scale": scale_of(best, request) if best else None,
        "notes": [*request.notes, *_untried(found)],
    }


def _candidate(one: "Candidate") -> dict[str, Any]:
    return {
        "layout": asdict(one.layout),
        "words": named(one.layout),
        "memory": one.memory.components() | {"total": one.memory.total},
        "seconds": figure_facts(one.step.seconds),
        "parts": dict(one.step.parts),
        "mfu": one.step.mfu,
        "tokens_per_second_per_device": one.rate,
    }


def show_points(
    request: "Request", points: "Sequence[Point]", within: float | None, best: "Point | None"
) -> None:
    """Time against cost, and what is cheapest by a deadline."""
    click.echo(f"{request.name}: the fastest layout on each, days and dollars of the run (90% within)\n")
    rows = [_point_row(one, points) for one in points]
    show_table(["devices", "layout", "step", "MFU", "days", "dollars", ""], rows)
    if within is not None:
        click.echo("\n" + _verdict(points, within, best))
    for one in points:
        if one.best is None:
            click.echo(f"{one.name}: {one.why}")
    for note in request.notes:
        click.echo(f"note: {note}")


def _verdict(points: "Sequence[Point]", within: float, best: "Point | None") -> str:
    if best is not None:
        return f"cheapest within {within:g} days: {best.name}, {_days(best)}, {_dollars(best)}"
    able = [one for one in points if one.best is not None]
    if not able:
        return f"none is done within {within:g} days: nothing fits"
    first = min(able, key=lambda one: one.days.value)
    return f"none is done within {within:g} days; the fastest is {first.name}, {_days(first)}"


def _days(one: "Point") -> str:
    return f"{days_of(one.days.value)} ({interval_of(one.days, days_of)})"


def _dollars(one: "Point") -> str:
    return f"{dollars_of(one.dollars.value)} ({interval_of(one.dollars, dollars_of)})"


def _point_row(one: "Point", points: "Sequence[Point]") -> list[str]:
    if one.best is None:
        return [one.name, "none fits", "", "", "", "", ""]
    step = one.best.step
    numbers = [_days(one), _dollars(one)]
    return [
        one.name,
        named(one.best.layout),
        _seconds(step.seconds.value),
        f"{step.mfu:.1%}",
        *numbers,
        _beaten(one, points),
    ]


def _beaten(one: "Point", points: "Sequence[Point]") -> str:
    """Which point beats this one in both; none: it is on the front."""
    from cupola.plan.frontier import front

    ahead = front(points)
    if one in ahead:
        return "on the front"
    days, dollars = one.days.value, one.dollars.value
    other = next(each for each in ahead if each.days.value <= days and each.dollars.value <= dollars)
    return f"beaten by {other.name}"


def points_facts(points: "Sequence[Point]", within: float | None, best: "Point | None") -> dict[str, Any]:
    """The same as JSON-able values."""
    from cupola.plan.frontier import front

    ahead = front(points)
    return {
        "points": [
            {
                "devices": one.name,
                "best": _candidate(one.best) if one.best else None,
                "days": figure_facts(one.days) if one.best else None,
                "dollars": figure_facts(one.dollars) if one.best else None,
                "on_the_front": one in ahead,
                "why": one.why or None,
            }
            for one in points
        ],
        "deadline_days": within,
        "cheapest": best.name if best else None,
    }
