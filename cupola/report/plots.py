"""The report's curves as SVG that takes its colours from the page.

Figures are drawn once with placeholder colours, which become CSS variables, so the same picture serves a
light and a dark page; text stays text. A long run is reduced to at most `POINTS` bins by their mean, which
keeps the page small; the loss also shows each bin's range.
"""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from cupola.display import count
from cupola.report.records import StageRecords, heldout_by_source

POINTS = 400
WIDE = 300
"""A logarithmic axis of more than this has powers of ten only."""
WIDTH, HEIGHT = 4.8, 2.7  # inches; narrow, so that text stays readable on a phone

# Placeholder -> (variable, light, dark). Series colours are told apart by lightness as well as by hue.
INK, FAINT, GRID = "#0a0a01", "#0a0a02", "#0a0a03"
SERIES = ("#0b0b01", "#0b0b02", "#0b0b03", "#0b0b04", "#0b0b05", "#0b0b06")
PALETTE = {
    INK: ("ink", "#1f2328", "#e6e8eb"),
    FAINT: ("faint", "#59636e", "#9aa4ae"),
    GRID: ("grid", "#d8dce1", "#363c44"),
    SERIES[0]: ("series-1", "#c2410c", "#fb923c"),
    SERIES[1]: ("series-2", "#1d5fbf", "#6cb0ff"),
    SERIES[2]: ("series-3", "#0f766e", "#4fd1c0"),
    SERIES[3]: ("series-4", "#8a3ab0", "#d29bf0"),
    SERIES[4]: ("series-5", "#8a6d00", "#e3c341"),
    SERIES[5]: ("series-6", "#b0285a", "#ff8fb3"),
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "legend.frameon": False,
    "legend.labelcolor": FAINT,
    "legend.fontsize": 8,
    "text.color": FAINT,
    "lines.linewidth": 1.5,
}


def palette_css() -> str:
    """The variables of both themes, for a style sheet."""
    light, dark = (
        " ".join(f"--{value[0]}: {value[theme]};" for value in PALETTE.values()) for theme in (1, 2)
    )
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def loss_plot_svg(stages: Sequence[StageRecords], standalone: bool = True) -> str:
    """Training loss (nats a token) against tokens, each stage marked.

    Args:
        standalone: a whole SVG file with its own colours for light and dark; otherwise it takes those of
            the page that holds it.
    """
    return draw_over_tokens(stages, [("training loss (nats per token)", _loss)], standalone)


def curve_svgs(stages: Sequence[StageRecords], yardsticks: dict[str, float]) -> list[str]:
    """Every figure of the page after the loss; one that has nothing to show is left out.

    Args:
        yardsticks: source -> bits per byte of an ordinary compressor, drawn as dotted lines.
    """

    def heldout(axes: Axes, stages: Sequence[StageRecords]) -> bool:
        return _heldout(axes, stages, yardsticks)

    figures: list[list[tuple[str, Callable[[Axes, Sequence[StageRecords]], bool]]]] = [
        [("held-out bits per byte", heldout)],
        [("learning rate", _column("learning_rate"))],
        [("tokens a step", _column("batch_tokens")), ("tokens a row", _column("sequence_length"))],
        [("gradient norm", _column("gradient_norm", log=True))],
        [
            ("tokens per second", _column("tokens_per_second")),
            ("share of matmul peak", _column("mfu", percent=True)),
        ],
        [("share of each source", _shares)],
        [("memory in use (bytes)", _column("memory_bytes"))],
    ]
    return [svg for panels in figures if (svg := draw_over_tokens(stages, panels, standalone=False))]


def draw_over_tokens(
    stages: Sequence[StageRecords],
    panels: Sequence[tuple[str, Callable[[Axes, Sequence[StageRecords]], bool]]],
    standalone: bool,
) -> str:
    """The panels one above the other over the same tokens; "" if none has anything to show."""
    shown = []

    def panel(draw: Callable[[Axes, Sequence[StageRecords]], bool], first: bool) -> Callable[[Axes], None]:
        def drawn(axes: Axes) -> None:
            shown.append(draw(axes, stages))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            _mark_stages(axes, stages, names=first)
            axes.set_xlim(left=0)

        return drawn

    ready = [(title, panel(draw, index == 0)) for index, (title, draw) in enumerate(panels)]
    svg = figure_svg(ready, standalone, "tokens", title_pad=16 if len(stages) > 1 else 6)
    return svg if any(shown) else ""


def figure_svg(
    panels: Sequence[tuple[str, Callable[[Axes], None]]],
    standalone: bool,
    x_label: str,
    title_pad: float = 6,
    height: float = HEIGHT,
) -> str:
    """Panels one above the other over one horizontal axis, in the report's style.

    Args:
        panels: (title, what draws it) of each.
        standalone: as `loss_plot_svg`.
        title_pad: points above the first panel, for what is written there.
        height: inches of all panels together.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": panels[0][0]}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, draw) in zip(axes, panels, strict=True):
            axis.set_title(title, pad=title_pad if axis is axes[0] else 6)
            draw(axis)
        axes[-1].set_xlabel(x_label)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), panels[0][0], standalone)


def _themed(svg: str, title: str, standalone: bool) -> str:
    """Placeholders to variables; without the prologue and the ids that would clash inside a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for placeholder, (name, _, _) in PALETTE.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    head, body = svg.split(">", 1)
    if not standalone:
        head = re.sub(r' (width|height)="[^"]*"', "", head)
    head += f' role="img" aria-label="{html.escape(title)}"'
    style = f"<style>{palette_css()} svg {{ background: transparent; }}</style>" if standalone else ""
    return f"{head}>{style}{body}"


def binned(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, ...]:
    """(x, mean, lowest, highest) of at most `points` bins of neighbours; gaps (NaN) are left out."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y, y, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(x)))
    mean_x, mean = np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes
    return mean_x, mean, np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a fiftieth of the points to either side, fewer at the ends."""
    reach = len(values) // 50
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _loss(axes: Axes, stages: Sequence[StageRecords]) -> bool:
    lines = []
    for stage in stages:
        x, mean, low, high = binned(stage.position, stage.columns["loss"])
        if not len(x):
            continue
        axes.plot(x, mean, color=SERIES[0], linewidth=0.7, alpha=0.35)
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.15, linewidth=0)
        smoothed = smooth(mean)
        axes.plot(x, smoothed, color=SERIES[0])
        lines.append(smoothed)
    if lines:
        every = np.concatenate(lines)
        axes.set_ylim(bottom=0.97 * float(every.min()), top=1.03 * float(every.max()))
    return bool(lines)


def _heldout(axes: Axes, stages: Sequence[StageRecords], yardsticks: dict[str, float]) -> bool:
    """A line through the fixed choice of held-out text, and a hollow mark where all of it was read."""
    choice, whole = _heldout_points(stages, False), _heldout_points(stages, True)
    sources = list(dict.fromkeys([*choice, *whole]))
    for number, source in enumerate(sources):
        color = SERIES[number % len(SERIES)]
        x, y = zip(*choice.get(source, [(math.nan, math.nan)]), strict=True)
        axes.plot(x, y, color=color, marker=".", label=source)
        if source in whole:
            x, y = zip(*whole[source], strict=True)
            axes.scatter(x, y, s=25, facecolors="none", edgecolors=color)
        if source in yardsticks:
            axes.axhline(yardsticks[source], color=color, linestyle=":", linewidth=1)
    if sources:
        marks = ["circles: all of it"] if whole else []
        marks += ["dotted: xz -9"] if any(source in yardsticks for source in sources) else []
        axes.legend(title=", ".join(marks) or None, title_fontsize=8, ncols=2)
    return bool(sources)


def _heldout_points(stages: Sequence[StageRecords], whole: bool) -> dict[str, list[tuple[float, float]]]:
    """Source -> (tokens of the run, bits per byte) of the evaluations that read all held-out text, or not."""
    points: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        for evaluation in stage.evaluations:
            if bool(evaluation.get("whole")) == whole:
                for source, figure in heldout_by_source(evaluation).items():
                    points.setdefault(source, []).append((stage.place(evaluation), figure))
    return points


def _column(name: str, log: bool = False, percent: bool = False) -> Callable[..., bool]:
    """A panel of one column of the metrics."""

    def draw(axes: Axes, stages: Sequence[StageRecords]) -> bool:
        shown = False
        for stage in stages:
            x, mean, _, _ = binned(stage.position, stage.columns[name])
            if len(x):
                axes.plot(x, mean, color=SERIES[1])
                shown = True
        scale_values(axes, shown, log, percent)
        return shown

    return draw


def scale_values(axes: Axes, shown: bool, log: bool = False, percent: bool = False) -> None:
    """The vertical axis: from 0 or logarithmic, in plain numbers or percentages."""
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        wide = high > WIDE * low  # 1, 2, 5, 10 would stand on top of each other
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=12))
    elif shown:
        axes.set_ylim(bottom=0)
    formatter = _percent if percent else _plain
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _plain(value: float) -> str:
    if 0 < abs(value) < 0.01:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.3g}e{exponent}"
    return count(float(f"{value:.6g}"))


def _shares(axes: Axes, stages: Sequence[StageRecords]) -> bool:
    sources = list(dict.fromkeys(source for stage in stages for source in stage.shares))
    drawn = False
    for stage in stages:
        if not stage.shares or not stage.steps:
            continue
        rows = []
        for source in sources:
            values = stage.shares.get(source, np.zeros(stage.steps))
            x, mean, _, _ = binned(stage.position, values, POINTS // 4)
            rows.append(mean)
        axes.stackplot(
            x,
            rows,
            colors=[SERIES[place % len(SERIES)] for place in range(len(sources))],
            labels=[] if drawn else sources,
            alpha=0.75,
            linewidth=0,
        )
        drawn = True
    if drawn:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
        axes.figure.legend(loc="outside lower center", ncols=3)
    return drawn


def _mark_stages(axes: Axes, stages: Sequence[StageRecords], names: bool) -> None:
    """A line where each stage begins, and its name above the first panel."""
    begun = [stage for stage in stages if stage.tokens]
    if len(begun) < 2:
        return
    for stage in begun:
        if stage.offset:
            axes.axvline(stage.offset, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        if names:
            axes.annotate(
                stage.name,
                (stage.offset, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                va="bottom",
                fontsize=8,
            )
