"""The pictures of `cupola eval`: probes by length and depth as a heat map, loss by position as a curve."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from cupola.display import count
from cupola.evaluate.long_context import Cell, LossByPosition
from cupola.report.plots import GRID, INK, SERIES, figure_svg

PANEL_HEIGHT, CURVE_HEIGHT = 2.4, 3.2  # inches


def heat_map_svg(probes: Mapping[str, Sequence[Cell]]) -> str:
    """A panel for each kind of probe: depth downwards against length, in each cell the share that was found.

    Args:
        probes: kind -> its cells, of the same lengths and depths for all.
    """
    panels = [(f"{kind}: share of {cells[0].samples} found", _cells(cells)) for kind, cells in probes.items()]
    return figure_svg(panels, True, "tokens", height=0.5 + PANEL_HEIGHT * len(panels))


def _cells(cells: Sequence[Cell]) -> Callable[[Axes], None]:
    lengths = sorted({cell.length for cell in cells})
    depths = sorted({cell.depth for cell in cells})

    def draw(axes: Axes) -> None:
        for cell in cells:
            x, y = lengths.index(cell.length), depths.index(cell.depth)
            corner = (x - 0.5, y - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, facecolor=SERIES[1], alpha=0.75 * cell.accuracy, linewidth=0)
            )
            axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=GRID, linewidth=0.6))
            axes.text(x, y, f"{cell.accuracy:.0%}", ha="center", va="center", fontsize=8, color=INK)
        axes.grid(False)
        axes.set_xlim(-0.5, len(lengths) - 0.5)
        axes.set_ylim(len(depths) - 0.5, -0.5)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_ylabel("depth")

    return draw


def position_svg(sources: Mapping[str, LossByPosition]) -> str:
    """Mean loss against position, a line a source, with a band of one standard error; "" without a row.

    Args:
        sources: name -> its rows.
    """
    known = {name: found for name, found in sources.items() if found.rows}
    if not known:
        return ""

    def draw(axes: Axes) -> None:
        for number, (name, found) in enumerate(known.items()):
            buckets = found.buckets()
            x = np.array([np.sqrt(bucket.first * bucket.last) for bucket in buckets])
            loss = np.array([bucket.loss for bucket in buckets])
            error = np.array([bucket.standard_error or 0.0 for bucket in buckets])
            color = SERIES[number % len(SERIES)]
            axes.plot(x, loss, color=color, marker="o", markersize=3, label=name)
            axes.fill_between(x, loss - error, loss + error, color=color, alpha=0.18, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(known) > 1:
            axes.legend()

    return figure_svg([("loss (nats per token)", draw)], True, "tokens read before", height=CURVE_HEIGHT)
