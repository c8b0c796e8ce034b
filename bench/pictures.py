"""The curves of `bench.architectures` and `bench.coordinates` for docs, in the report's style."""

from collections.abc import Callable
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


def draw_coordinates(rows: list[dict[str, Any]], widths: list[int], path: str) -> None:
    """`bench.coordinates`: what some steps change of the logits and of the last block, against the width;
    AdamW, some families, standard dotted and muP solid."""
    families = ("transformer", "gpt", "mixture", "mamba2", "rwkv7", "hybrid")
    adamw = [row for row in rows if row["optimizer"] == "adamw" and row["family"] in families]

    def panel(name: str) -> Callable[[Axes], None]:
        def drawn(axes: Axes) -> None:
            for row in adamw:
                mup = row["kind"] == "mup"
                axes.plot(
                    widths,
                    row["changes"][name],
                    marker="o",
                    markersize=3,
                    linestyle="-" if mup else ":",
                    label=row["family"] if mup else None,
                    color=SERIES[families.index(row["family"])],
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(widths)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            if name == "logits":
                axes.legend()

        return drawn

    panels = [("change of the logits", panel("logits")), ("change of the last block", panel("blocks.1"))]
    svg = figure_svg(panels, standalone=True, x_label="width", height=4.6)
    Path(path).write_text(svg, encoding="utf-8")
