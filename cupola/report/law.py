"""The picture of a scaling law: losses of runs against compute, the fitted curves, and what was foretold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from cupola.display import count
from cupola.plan.fitting import Fit, Point, Predicted
from cupola.report.plots import FAINT, INK, SERIES, figure_svg

POINTS = 60
HEIGHT = 3.6


@dataclass(frozen=True)
class Foretold:
    """A prediction to draw.

    Attributes:
        measured: the loss that came of it; None where it isn't trained yet.
    """

    parameters: float
    tokens: float
    predicted: Predicted
    measured: float | None = None


def law_svg(points: Sequence[Point], fitted: Fit, foretold: Sequence[Foretold], standalone: bool) -> str:
    """Loss over compute (6 N D, both logarithmic): a curve for each size, the runs as dots, the best that the
    law has for each compute dashed, predictions as bars of their 90% interval, what came of them as rings."""

    def draw(axes: Axes) -> None:
        sizes = sorted({point.parameters for point in points})
        for number, size in enumerate(sizes):
            own = sorted((p for p in points if p.parameters == size), key=lambda p: p.tokens)
            color = SERIES[number % len(SERIES)]
            tokens = np.geomspace(own[0].tokens / 1.5, own[-1].tokens * 1.5, POINTS)
            axes.plot(6 * size * tokens, [fitted.law.loss(size, d) for d in tokens], color=color, linewidth=1)
            axes.scatter(
                [6 * size * p.tokens for p in own],
                [p.loss for p in own],
                s=14,
                color=color,
                label=count(size),
            )
        flops = [6 * p.parameters * p.tokens for p in points]
        flops += [6 * each.parameters * each.tokens for each in foretold]
        reach = np.geomspace(min(flops), max(flops) * 1.3, POINTS)
        best = [fitted.law.optimum(each).loss or math.nan for each in reach]
        axes.plot(reach, best, color=FAINT, linestyle="--", linewidth=1, label="best")
        for number, each in enumerate(foretold):
            _bar(axes, each, named=number == 0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        losses = [*(p.loss for p in points), *best, *(each.predicted.low for each in foretold)]
        axes.set_ylim(0.98 * min(losses), 1.02 * max(*(p.loss for p in points), *best))
        axes.legend(title="parameters", title_fontsize=8, ncols=2)

    return figure_svg([("held-out loss (nats per token)", draw)], standalone, "FLOPs (6ND)", height=HEIGHT)


def _bar(axes: Axes, each: Foretold, named: bool) -> None:
    place, said = 6 * each.parameters * each.tokens, each.predicted
    reach = [[said.loss - said.low], [said.high - said.loss]]
    label = "predicted" if named else None
    axes.errorbar([place], [said.loss], reach, color=INK, capsize=3, linewidth=1, marker="_", label=label)
    if each.measured is not None:
        label = "came out" if named else None
        axes.scatter([place], [each.measured], s=30, facecolors="none", edgecolors=INK, zorder=3, label=label)
