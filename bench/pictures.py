"""The curves of `bench.architectures` as one SVG for docs, in the report's style."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from cupola.report.plots import SERIES, figure_svg


def draw_curves(rows: list[dict[str, Any]], path: str) -> None:
    """Speed and memory of training against the length of a row."""

    def speed(axes: Axes) -> None:
        _lines(axes, rows, "tokens_per_second")

    def memory(axes: Axes) -> None:
        _lines(axes, [{**row, "mib": row["step_bytes"] / 2**20} for row in rows], "mib")

    panels = [("training: tokens per second", speed), ("training: MiB of a step", memory)]
    Path(path).write_text(figure_svg(panels, standalone=True, x_label="tokens of a row"), encoding="utf-8")


def _lines(axes: Axes, rows: list[dict[str, Any]], column: str) -> None:
    for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        own = [row for row in rows if row["name"] == name]
        lengths, values = [row["length"] for row in own], [row[column] for row in own]
        axes.plot(lengths, values, marker="o", markersize=3, label=name, color=SERIES[number])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend()
