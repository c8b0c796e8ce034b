"""The proofs' pictures for docs, in the report's style."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cupola.json_lines import read_whole
from cupola.report.plots import FAINT, SERIES, figure_svg

SMOOTHED = 8
"""Steps of a moving mean."""
KL, REWARDS = "kl", {"reward_stage:rm": "reward model", "reward_true_score": "true score"}


def draw_stages(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each figure: a dot for each seed, a bar for the mean."""
    names, stages = _drawn(rows)

    def panel(name: str) -> Callable[[Axes], None]:
        def drawn(axes: Axes) -> None:
            for place, stage in enumerate(stages):
                values = [row[name] for row in rows if row["stage"] == stage]
                colour = SERIES[place % len(SERIES)]
                axes.plot([place] * len(values), values, "o", markersize=4, color=colour)
                axes.hlines(float(np.mean(values)), place - 0.3, place + 0.3, color=colour)
            axes.set_xticks(range(len(stages)), stages)
            axes.set_xlim(-0.5, len(stages) - 0.5)

        return drawn

    svg = figure_svg([(name, panel(name)) for name in names], standalone=True, x_label="", height=4.6)
    path.write_text(svg, encoding="utf-8")


def draw_reach(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each kind of figure, `NAME LENGTH`, over the lengths: a line for each stage, its means."""
    names, stages = _drawn(rows)
    lengths = {name: int(name.rpartition(" ")[2].replace(",", "")) for name in names}
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in names))

    def panel(kind: str) -> Callable[[Axes], None]:
        own = [name for name in names if name.startswith(f"{kind} ")]

        def drawn(axes: Axes) -> None:
            for place, stage in enumerate(stages):
                found = [row for row in rows if row["stage"] == stage]
                means = [float(np.mean([row[name] for row in found])) for name in own]
                line = axes.plot([lengths[name] for name in own], means, "o-", markersize=3, label=stage)
                line[0].set_color(SERIES[place] if place < len(SERIES) else FAINT)
            axes.set_xscale("log", base=2)
            axes.set_xticks([lengths[name] for name in own], [name.rpartition(" ")[2] for name in own])
            if kind == kinds[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

        return drawn

    svg = figure_svg(
        [(kind, panel(kind)) for kind in kinds], standalone=True, x_label="length, tokens", height=6.6
    )
    path.write_text(svg, encoding="utf-8")


def draw_preferences(rows: list[dict[str, Any]], path: Path) -> None:
    """The stages, and in `overoptimisation.svg` the rewards of those that follow a reward model."""
    draw_stages(rows, path)
    runs = [path.with_name(f"{path.stem}-{seed}") for seed in dict.fromkeys(row["seed"] for row in rows)]
    draw_rewards(runs, ("free", "held"), path.with_name("overoptimisation.svg"))


def draw_rewards(runs: Sequence[Path], stages: Sequence[str], path: Path) -> None:
    """Rewards of sampled answers against the KL of an answer to the weights that the stages began with."""

    def panel(metric: str) -> Callable[[Axes], None]:
        def drawn(axes: Axes) -> None:
            for place, stage in enumerate(stages):
                for number, run in enumerate(runs):
                    (file,) = run.glob(f"stages/*-{stage}/metrics.jsonl")
                    steps = read_whole(file)
                    moved = _smooth([row[KL] * row["completion_length"] for row in steps])
                    label = stage if number == 0 else None
                    axes.plot(
                        moved, _smooth([row[metric] for row in steps]), label=label, color=SERIES[place]
                    )
            axes.axhline(0, color=FAINT, linewidth=0.6)
            axes.legend()

        return drawn

    panels = [(title, panel(metric)) for metric, title in REWARDS.items()]
    svg = figure_svg(panels, standalone=True, x_label="KL of an answer, nats", height=4.6)
    path.write_text(svg, encoding="utf-8")


def _drawn(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The names of the figures, and the stages."""
    names = [name for name in rows[0] if name not in ("seed", "stage", "seconds")]
    return names, list(dict.fromkeys(row["stage"] for row in rows))


def _smooth(values: Sequence[float]) -> np.ndarray:
    return np.convolve(values, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
