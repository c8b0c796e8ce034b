"""The curves of `bench.architectures` as one SVG for docs, in the report's style."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cupola.display import count
from cupola.report.plots import SERIES, figure_svg


def draw_curves(rows: list[dict[str, Any]], path: str) -> None:
    """Speed and memory of training against the length of a row."""

    def speed(axes: Axes) -> None:
        _lines(axes, rows, "tokens_per_second")

    def memory(axes: Axes) -> None:
        _lines(axes, [{**row, "mib": row["step_bytes"] / 2**20} for row in rows], "mib")

    panels = [("training: tokens per second", speed), ("training: MiB of a step", memory)]
    svg = figure_svg(panels, standalone=True, x_label="tokens of a row", height=4.6)
    Path(path).write_text(svg, encoding="utf-8")


def _lines(axes: Axes, rows: list[dict[str, Any]], column: str) -> None:
    for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        own = [row for row in rows if row["name"] == name]
        lengths, values = [row["length"] for row in own], [row[column] for row in own]
        axes.plot(lengths, values, marker="o", markersize=3, label=name, color=SERIES[number])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["length"] for row in rows}))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.legend()
