"""The pictures of a plan, drawn from what `cupola plan --json` prints and from nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cupola.display import count
from cupola.plan.layout import Layout
from cupola.plan.timeline import Kind, timeline
from cupola.report.plots import FAINT, GRID, INK, SERIES, figure_svg

Facts = Mapping[str, Any]
Draw = Callable[[Axes], None]

GIB = 2.0**30
BARS = 16
"""Pipeline ranks that are shown; of more an even choice."""
PASSES = 1200
"""Passes of a timeline, beyond which fewer microbatches are drawn."""
LEAST_SHARE = 0.005
"""Parts of a step that are less of all of them are drawn together."""
BAR = 0.26  # inches
PALE = 0.45
FAR = 4
"""A device with so many times the memory that is needed isn't drawn; bars would be too short to read."""

# What stands for what: a colour, and how strong it is; kin share a colour.
COMPONENTS: dict[str, tuple[str, float]] = {
    "parameters": (SERIES[1], 1),
    "gradients": (SERIES[1], PALE),
    "master weights": (SERIES[3], 1),
    "optimizer states": (SERIES[3], PALE),
    "activations": (SERIES[0], 1),
    "pipeline": (SERIES[0], PALE),
    "gathered": (SERIES[2], 1),
    "logits": (SERIES[4], 1),
    "backward pass": (SERIES[4], PALE),
    "fragmentation": (FAINT, 0.75),
    "context": (FAINT, 0.35),
}
PARTS: dict[str, tuple[str, float]] = {
    "products": (SERIES[1], 1),
    "attention": (SERIES[1], PALE),
    "memory-bound": (SERIES[2], 1),
    "recomputed": (SERIES[4], 1),
    "launches": (SERIES[2], PALE),
    "tensor parallel": (SERIES[0], 1),
    "context parallel": (SERIES[0], PALE),
    "expert parallel": (SERIES[5], 1),
    "shards gathered": (SERIES[3], 1),
    "pipeline sends": (SERIES[3], PALE),
    "pipeline bubble": (FAINT, 0.3),
    "gradients summed": (SERIES[5], PALE),
    "optimizer": (SERIES[4], PALE),
    "pauses": (FAINT, 0.55),
    "waiting for the slowest": (FAINT, 0.8),
}
OTHER = (INK, 0.6)
WAYS: dict[Kind, str] = {"forward": SERIES[1], "backward": SERIES[0], "weights": SERIES[4]}


def memory_svg(stages: Sequence[Facts]) -> str:
    """GiB of a device by component, a bar for each pipeline rank of each stage, and what the device has."""
    bars = [
        (_place(stage, rank, len(stages)), stage["memory_by_rank"][rank])
        for stage in stages
        for rank in shown(len(stage["memory_by_rank"]), stage["rank"])
    ]
    rows = [(name, {part: memory.get(part, 0) / GIB for part in COMPONENTS}) for name, memory in bars]
    available = stages[0]["available"] / GIB
    largest = max(sum(parts.values()) for _, parts in rows)
    near = available < FAR * largest

    def draw(axes: Axes) -> None:
        _stack(axes, rows, COMPONENTS)
        if near:
            axes.axvline(available, color=INK, linewidth=1.2, label="the device")
            within = available * (1 - stages[0]["margin"])
            axes.axvline(within, color=INK, linewidth=0.8, linestyle=":", label="less the margin")
        axes.set_xlim(0, 1.04 * max(largest, available * near))
        axes.figure.legend(loc="outside lower center", ncols=3)

    title = f"memory of a device (GiB of {available:,.1f})"
    return figure_svg([(title, draw)], False, "", height=1.5 + BAR * len(rows))


def step_svg(stages: Sequence[Facts]) -> str:
    """Shares of a step by what they go to, a bar for each stage whose step is known; "" without one."""
    known = [stage for stage in stages if stage["step"]]
    if not known:
        return ""
    rows = []
    for stage in known:
        whole = stage["step"]["seconds"]["value"]
        shares = {name: seconds / whole for name, seconds in stage["step"]["parts"].items()}
        rows.append((stage["name"], shares))
    small = {name for name in PARTS if all(row.get(name, 0) < LEAST_SHARE for _, row in rows)}
    merged = [
        (name, {part: 0.0 if part in small else row.get(part, 0.0) for part in PARTS} | {"other": 0.0})
        for name, row in rows
    ]
    for (_, kept), (_, row) in zip(merged, rows, strict=True):
        kept["other"] = max(0.0, sum(row.values()) - sum(kept.values()))

    def draw(axes: Axes) -> None:
        _stack(axes, merged, PARTS | {"other": OTHER})
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.figure.legend(loc="outside lower center", ncols=3)

    title = "where the time of a step goes"
    return figure_svg([(title, draw)], False, "", height=1.45 + 1.2 * BAR * len(rows))


def timeline_svg(stage: Facts) -> str:
    """Who does what when in a pipeline's step, on few microbatches: what is empty is the bubble."""
    layout, step = Layout(**{**stage["layout"], "layers": tuple(stage["layout"]["layers"])}), stage["step"]
    number = drawn(layout, step["microbatches"])
    passes = timeline(layout, number, [(rank["forward"], rank["backward"]) for rank in step["ranks"]])
    rows = shown(layout.pipeline, 0)
    end = max(one.end for one in passes)
    scale, unit = (1000, "ms") if end < 1 else (1, "seconds")

    def draw(axes: Axes) -> None:
        for place, rank in enumerate(rows):
            axes.barh(place, end * scale, height=0.84, color=GRID, alpha=0.55)
            for kind, color in WAYS.items():
                for chunk in range(layout.stage_count // layout.pipeline):
                    own = [one for one in passes if (one.rank, one.kind, one.chunk) == (rank, kind, chunk)]
                    spans = [(scale * one.start, 0.95 * scale * (one.end - one.start)) for one in own]
                    if spans:
                        strength = 1 if chunk % 2 == 0 else 0.6
                        axes.broken_barh(
                            spans, (place - 0.42, 0.84), facecolors=color, alpha=strength, linewidth=0
                        )
        for kind, color in WAYS.items():
            if any(one.kind == kind for one in passes):
                axes.bar(0, 0, color=color, label="weights' gradients" if kind == "weights" else kind)
        axes.bar(0, 0, color=GRID, alpha=0.55, label="idle")
        axes.grid(False)
        axes.set_xlim(0, end * scale)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [f"rank {rank}" for rank in rows])
        axes.figure.legend(loc="outside lower center", ncols=4)

    title = f"{stage['name']}: {number} of {step['microbatches']:,} microbatches, {layout.schedule}"
    return figure_svg([(title, draw)], False, unit, height=1.2 + BAR * len(rows))


def drawn(layout: Layout, microbatches: int) -> int:
    """How many microbatches a timeline shows: filling, draining, and some of the steady state between."""
    most = min(microbatches, 2 * layout.pipeline, max(1, PASSES // (2 * layout.stage_count)))
    if layout.schedule == "interleaved":
        return max(layout.pipeline, most // layout.pipeline * layout.pipeline)
    return most


def devices_svgs(points: Sequence[Facts], devices: int) -> list[str]:
    """Days and dollars over the number of devices, with their intervals; the one that was asked for ringed,
    those on which it doesn't fit hollow."""

    def panel(name: str) -> Draw:
        def draw(axes: Axes) -> None:
            x = [point["devices"] for point in points]
            low, middle, high = ([p[name][k] for p in points] for k in ("low", "value", "high"))
            axes.plot(x, middle, color=SERIES[1])
            axes.fill_between(x, low, high, color=SERIES[1], alpha=0.18, linewidth=0)
            for point in points:
                face = SERIES[1] if point["fits"] else "none"
                place = (point["devices"], point[name]["value"])
                axes.plot(*place, "o", markersize=4, markerfacecolor=face, markeredgecolor=SERIES[1])
                if point["devices"] == devices:
                    axes.plot(*place, "o", markersize=10, markerfacecolor="none", markeredgecolor=SERIES[0])
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(x[:: -(-len(x) // 7)])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.minorticks_off()
            wide = max(high) > 20 * min(low)
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=12))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))

        return draw

    names = [name for name in ("days", "dollars") if all(point[name]["low"] > 0 for point in points)]
    return [figure_svg([(f"{name} by devices", panel(name))], False, "devices") for name in names]


def played_svg(played: Facts) -> str:
    """Calendar days of the runs that were played, their median and the middle nine tenths."""
    edges, counts, days = played["edges"], played["counts"], played["days"]

    def draw(axes: Axes) -> None:
        axes.axvspan(days["low"], days["high"], color=SERIES[1], alpha=0.12, linewidth=0)
        if len(edges) > 2:
            width = edges[1] - edges[0]
            axes.bar(edges[:-1], counts, width=0.94 * width, align="edge", color=SERIES[1], alpha=0.8)
        else:
            axes.bar(edges[:1], counts, color=SERIES[1], alpha=0.8)
        axes.axvline(days["value"], color=SERIES[0], label="median")
        axes.yaxis.grid(False)
        axes.legend(loc="upper right")

    return figure_svg([(f"days of {played['times']:,} played runs", draw)], False, "days")


def lost_svg(lost: Mapping[str, float]) -> str:
    """Shares of time that are not progress, by what they go to; "" where nothing is lost."""
    found = {name: share for name, share in lost.items() if share > 0}
    if not found:
        return ""

    def draw(axes: Axes) -> None:
        axes.barh(range(len(found)), list(found.values()), height=0.7, color=SERIES[0], alpha=0.85)
        for place, share in enumerate(found.values()):
            axes.annotate(
                f"{share:.2%}",
                (share, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * max(found.values()))
        axes.yaxis.grid(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))

    return figure_svg([("share of time lost", draw)], False, "", height=0.9 + 0.3 * len(found))


def shown(number: int, always: int) -> list[int]:
    """Which of so many ranks, the first and the last among them."""
    if number <= BARS:
        return list(range(number))
    return sorted({always, *(round(place * (number - 1) / (BARS - 1)) for place in range(BARS))})


def _stack(
    axes: Axes,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    looks: Mapping[str, tuple[str, float]],
) -> None:
    """Bars that lie on their side, one below the other, of what is anything in any of them."""
    left = [0.0] * len(rows)
    for part, (color, strength) in looks.items():
        values = [parts.get(part, 0.0) for _, parts in rows]
        if any(values):
            axes.barh(
                range(len(rows)), values, left=left, height=0.74, color=color, alpha=strength, label=part
            )
            left = [begun + value for begun, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.yaxis.grid(False)


def _place(stage: Facts, rank: int, stages: int) -> str:
    """What a bar is of."""
    if len(stage["memory_by_rank"]) == 1:
        return str(stage["name"])
    return f"rank {rank}" if stages == 1 else f"{stage['name']} {rank}"


def _short(value: float) -> str:
    return count(value) if value >= 1 else f"{value:.2g}"
