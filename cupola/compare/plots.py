"""The pictures of a comparison and of a sweep, in the report's style.

Of each variant the mean over its seeds, and the band from the lowest to the highest of them. Training loss is
smoothed as the report does it, then read off on common points; held-out text is the fixed choice that every
evaluation reads, with a hollow mark where all of it was read at the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from cupola.compare.results import Curve, VariantResult
from cupola.display import count
from cupola.report.plots import SERIES, binned, figure_svg, smooth

AXES = ("tokens", "FLOPs", "seconds")
POINTS = 200
SHOWN_FROM = 0.1
"""The vertical axis begins where the curves are after this share of the way: the first steps fall from
ln V, and would flatten everything after."""
DASHES = ("-", "--", ":", "-.")
"""After each round of colours another line."""
HEIGHT = 4.8
PANEL_HEIGHT = 1.7
SHORT_NAME = 24  # characters, of which two stand beside each other


def comparison_svgs(variants: Sequence[VariantResult], standalone: bool) -> dict[str, str]:
    """ "tokens", "FLOPs", "seconds" -> loss and held-out bits per byte against it; none without a run.

    Args:
        standalone: whole files; else parts of a page.
    """
    if not any(len(run.curve.loss) for variant in variants for run in variant.runs):
        return {}
    return {axis: _against(variants, axis, standalone) for axis in AXES}


def _against(variants: Sequence[VariantResult], axis: str, standalone: bool) -> str:
    def losses(axes: Axes) -> None:
        _lines(axes, variants, lambda curve: _smoothed(curve, axis), marker=None)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))

    def heldout(axes: Axes) -> None:
        _lines(axes, variants, lambda curve: _choice(curve, axis), marker=".")
        for number, variant in enumerate(variants):
            for run in variant.done:
                whole = run.curve.whole
                place, bits = run.curve.heldout_axes[axis][whole], run.curve.heldout[whole]
                axes.scatter(place, bits, s=20, facecolors="none", edgecolors=_color(number), linewidths=0.8)
                low, high = axes.get_ylim()
                margin = 0.04 * (high - low)
                axes.set_ylim(min([low, *(bits - margin)]), max([high, *(bits + margin)]))
        axes.set_xlim(left=0)
        columns = 2 if max(len(variant.name) for variant in variants) <= SHORT_NAME else 1
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)

    panels = [
        (f"training loss against {axis} (nats per token)", losses),
        ("held-out bits per byte (circles: all of it)", heldout),
    ]
    return figure_svg(panels, standalone, axis, height=HEIGHT)


def _color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _smoothed(curve: Curve, axis: str) -> tuple[np.ndarray, np.ndarray]:
    x, mean, _, _ = binned(curve.axes[axis], curve.loss)
    return x, smooth(mean)


def _choice(curve: Curve, axis: str) -> tuple[np.ndarray, np.ndarray]:
    known = ~curve.whole & np.isfinite(curve.heldout)
    return curve.heldout_axes[axis][known], curve.heldout[known]


def _lines(
    axes: Axes,
    variants: Sequence[VariantResult],
    read: Callable[[Curve], tuple[np.ndarray, np.ndarray]],
    marker: str | None,
) -> None:
    lows, highs = [], []
    for number, variant in enumerate(variants):
        curves = [read(run.curve) for run in variant.runs]
        curves = [(x, y) for x, y in curves if len(x)]
        style = DASHES[number // len(SERIES) % len(DASHES)]
        line: dict[str, Any] = {
            "color": _color(number),
            "linestyle": style,
            "label": variant.name,
            "marker": marker,
        }
        if not curves:
            axes.plot([], [], **line)
            continue
        x, mean, low, high = over_seeds(curves)
        axes.plot(x, mean, **line)
        if len(curves) > 1:
            axes.fill_between(x, low, high, color=_color(number), alpha=0.18, linewidth=0)
        late = x >= SHOWN_FROM * x[-1]
        lows.append(low.min())
        highs.append(high[late].max())
    if lows:
        margin = 0.04 * (max(highs) - min(lows)) or 0.04 * max(highs)
        axes.set_ylim(min(lows) - margin, max(highs) + margin)


def over_seeds(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """(x, mean, lowest, highest) of curves (x ascending, y).

    Curves of equally many points are taken point by point (the same step of each seed), x on average; others,
    of which some are unfinished, are read off at `POINTS` points of the stretch that all of them have.
    """
    if len({len(x) for x, _ in curves}) == 1:
        x, rows = np.mean([x for x, _ in curves], axis=0), np.stack([y for _, y in curves])
    else:
        x = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), POINTS)
        rows = np.stack([np.interp(x, own, y) for own, y in curves])
    return x, rows.mean(0), rows.min(0), rows.max(0)


Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Series:
    """What a stage went through, against its steps.

    Attributes:
        lines, marks: name -> (steps, values), (points,) each: of every step, and of each evaluation.
    """

    label: str
    lines: dict[str, Points]
    marks: dict[str, Points]


def series_svg(series: Sequence[Series], titles: Mapping[str, str], standalone: bool) -> str:
    """A panel for each name in `titles`, a line for each stage that has it; "" without any."""

    def panel(key: str, last: bool) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for number, one in enumerate(series):
                dashes = DASHES[number // len(SERIES) % len(DASHES)]
                style: dict[str, Any] = {"color": _color(number), "linestyle": dashes, "label": one.label}
                if key in one.lines:
                    x, mean, _, _ = binned(*one.lines[key])
                    axes.plot(x, smooth(mean), **style)
                elif key in one.marks:
                    axes.plot(*one.marks[key], marker=".", **style)
                else:
                    axes.plot([], [], **style)
            if last:
                axes.set_xlim(left=0)
                handles = axes.get_legend_handles_labels()
                axes.figure.legend(*handles, loc="outside lower center", ncols=min(4, len(series)))

        return draw

    if not titles:
        return ""
    panels = [(title, panel(key, key == list(titles)[-1])) for key, title in titles.items()]
    return figure_svg(panels, standalone, "step of the stage", height=1.0 + PANEL_HEIGHT * len(panels))


def sweep_svg(
    key: str, rungs: Sequence[tuple[str, dict[float, float]]], best: float | None, log: bool, standalone: bool
) -> str:
    """Held-out bits per byte against the value, one line a rung; "" without any.

    Args:
        rungs: (title, value -> bits per byte) of each, the first first.
        best: the value that is marked.
    """
    rungs = [(title, points) for title, points in rungs if points]
    if not rungs:
        return ""

    def draw(axes: Axes) -> None:
        for number, (title, points) in enumerate(rungs):
            x, y = zip(*sorted(points.items()), strict=True)
            axes.plot(x, y, color=_color(number), marker="o", markersize=3, label=title)
        if best is not None:
            axes.axvline(best, linestyle=":", linewidth=1, color=_color(len(rungs)))
        if log:
            axes.set_xscale("log")
        axes.legend(title=f"after (dotted: {best:g})" if best is not None else "after", title_fontsize=8)

    return figure_svg([("held-out bits per byte", draw)], standalone, key, height=3.2)
