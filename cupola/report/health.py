"""Numerical health (`train.health`) as curves by layer over the tokens: what grows is seen at a glance.

A figure shows at most `LINES` layers, evenly chosen with the first and the last, stronger with depth, in one
colour; a band holds all layers, so that no outlier hides. Embedding and head have colours of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes

from cupola.report.plots import SERIES, draw_over_tokens, scale_values
from cupola.report.records import StageRecords, finite_figures

LINES = 7
FIRST_ALPHA = 0.3
OUTSIDE = {"embedding": SERIES[1], "head": SERIES[2]}
"""Places that are no layer, and their colours."""

Curve = tuple[list[float], list[float]]
"""Tokens of the run, values."""

FIGURES: list[list[tuple[str, str, dict[str, bool]]]] = [
    [("residual stream after each layer (RMS)", "residual_rms", {"log": True})],
    [
        ("output of each mixer (RMS)", "mixer_rms", {"log": True}),
        ("output of each feed-forward layer (RMS)", "feedforward_rms", {"log": True}),
    ],
    [("largest attention score", "attention_logit_max", {})],
    [("gradient norm of each layer", "gradient_norm", {"log": True})],
    [("change of the weights in a step / weights", "update_ratio", {"log": True})],
    [
        ("hidden units that never fire", "dead_units", {"percent": True}),
        ("experts' hidden units that never fire", "dead_expert_units", {"percent": True}),
        ("experts without tokens", "idle_experts", {"percent": True}),
    ],
    [("fastest decay (a token)", "decay_min", {}), ("slowest decay (a token)", "decay_max", {})],
    [("recurrent state (RMS)", "state_rms", {"log": True})],
]
"""Panels of each figure: title, statistic, scale."""


def health_svgs(stages: Sequence[StageRecords]) -> list[str]:
    """A figure for each statistic that the run has."""
    found = []
    for figure in FIGURES:
        panels = [
            (title, _panel(statistic, **scale))
            for title, statistic, scale in figure
            if any(_curves(stage, statistic) for stage in stages)
        ]
        found.append(draw_over_tokens(stages, panels, standalone=False) if panels else "")
    return [svg for svg in found if svg]


def faults_of(stages: Sequence[StageRecords]) -> list[str]:
    """What was clearly off: for each stage and kind of trouble where it was seen first, and how often."""
    lines = []
    for stage in stages:
        seen: dict[str, list[tuple[Any, str]]] = {}
        for row in stage.health:
            for kind, text in (row.get("faults") or {}).items():
                seen.setdefault(kind, []).append((row.get("step"), str(text)))
        for looks in seen.values():
            step, text = looks[0]
            lines.append(f"{stage.name}, step {step}: {text} ({len(looks)} of {len(stage.health)} looks)")
    return lines


def _curves(stage: StageRecords, statistic: str) -> dict[str, Curve]:
    """Place -> its curve, without what is not finite, layers in order."""
    curves: dict[str, Curve] = {}
    for row in stage.health:
        figures, tokens = row.get(statistic), row.get("tokens")
        if not isinstance(figures, dict) or not isinstance(tokens, int | float):
            continue
        for place, value in finite_figures(figures).items():
            x, y = curves.setdefault(place, ([], []))
            x.append(stage.offset + tokens)
            y.append(value)
    return dict(sorted(curves.items()))


def _panel(
    statistic: str, log: bool = False, percent: bool = False
) -> Callable[[Axes, Sequence[StageRecords]], bool]:
    def draw(axes: Axes, stages: Sequence[StageRecords]) -> bool:
        drawn = False
        for stage in stages:
            curves = _curves(stage, statistic)
            layers = [place for place in curves if place.startswith("layer_")]
            _draw_band(axes, [curves[place] for place in layers])
            shown = _even_choice(layers, LINES)
            for number, place in enumerate(shown):
                alpha = FIRST_ALPHA + (1 - FIRST_ALPHA) * number / max(1, len(shown) - 1)
                label = place.replace("_", " ") if place in (shown[0], shown[-1]) and not drawn else None
                axes.plot(*curves[place], color=SERIES[0], alpha=alpha, label=label, **_mark(curves[place]))
            for place, color in OUTSIDE.items():
                if place in curves:
                    label = None if drawn else place
                    axes.plot(*curves[place], color=color, label=label, **_mark(curves[place]))
            drawn = drawn or bool(curves)
        scale_values(axes, drawn, log=log, percent=percent)
        if drawn:
            axes.legend(ncols=2)
        return drawn

    return draw


def _mark(curve: Curve) -> dict[str, Any]:
    """A single point has no line."""
    return {"marker": "."} if len(curve[0]) == 1 else {}


def _draw_band(axes: Axes, curves: list[Curve]) -> None:
    """From the lowest to the highest layer at each look."""
    at: dict[float, list[float]] = {}
    for x, y in curves:
        for tokens, value in zip(x, y, strict=True):
            at.setdefault(tokens, []).append(value)
    if len(curves) > LINES:
        positions = sorted(at)
        low, high = ([edge(at[position]) for position in positions] for edge in (min, max))
        axes.fill_between(positions, low, high, color=SERIES[0], alpha=0.15, linewidth=0)


def _even_choice(items: list[str], count: int) -> list[str]:
    """At most `count` of them, evenly spaced, the first and the last included."""
    if len(items) <= count:
        return items
    return [items[math.floor(place * (len(items) - 1) / (count - 1) + 0.5)] for place in range(count)]
