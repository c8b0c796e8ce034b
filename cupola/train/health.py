"""Numerical health: what to look at in the course of a stage, when, and what is clearly off.

A look (`train.look`) gives figures by layer: RMS of the residual stream and of what each mixer and
feed-forward layer adds to it, the largest attention score, dead units and idle experts, decays and states of
recurrent layers, gradient norms, and the change of the weights against the weights. A look is one row of
`health.jsonl`, a figure one curve of TensorBoard; the report draws them, and `docs/health.md` says how to
read them.

Costs: with `auto` a look every 25 steps or 2% of the stage, whichever is longer, so at most 2% as long as a
look costs less than half a step (it is about 0.1 in the benchmark); `python -m bench.health` measures it.
"""

import math
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from cupola import json_lines
from cupola.data.batch import Batch
from cupola.display import Display
from cupola.json_lines import Record
from cupola.objectives import Objective
from cupola.parallel.engine import LocalEngine
from cupola.recipe.clock import Clock
from cupola.recipe.quantity import Quantity
from cupola.recipe.schema import Health
from cupola.train.look import Figures, Look

AUTO_STEPS, AUTO_LOOKS = 25, 50
"""`auto`: at least so many steps apart, at most so many looks a stage."""

LARGEST_SCORE = 100.0
"""Above it attention is nearly one-hot. Kimi K2 (2025) clips its queries and keys where scores exceed 100;
the 8B vision model of Dehghani et al. 2023 reached 50,000 before it diverged without QK norm."""
SMALLEST_UPDATE, LARGEST_UPDATE = 1e-5, 1e-1
"""Of the weights in a step. About 1e-3 is the usual rule (Karpathy, makemore, part 3); the bounds, a hundred
times either way, are a guess. The lower one counts only near the peak of the learning rate."""
NEAR_PEAK = 0.5
MOST_DEAD = 0.5
"""Share of a layer's units, or experts: a guess. Early layers of OPT-66B have over 70% dead units (Voita et
al. 2023), so this is waste rather than danger."""


def interval(settings: Health, clock: Clock) -> Quantity | None:
    """How often to look, or None: never."""
    if settings.every == "off":
        return None
    if settings.every == "auto":
        return Quantity(max(AUTO_STEPS, -(-clock.step_count // AUTO_LOOKS)), "steps")
    return settings.every


class Watch:
    """Looks at one stage when it is due.

    Args:
        path: `health.jsonl`; rows after the checkpoint have been cut away.
        every: see `interval`.
        stage: its name, for warnings.
    """

    def __init__(
        self,
        path: Path,
        every: Quantity,
        clock: Clock,
        engine: LocalEngine,
        optimizer: Optimizer,
        objective: Objective,
        stage: str,
        display: Display,
    ) -> None:
        self.path, self.every, self.clock = path, every, clock
        self.engine, self.optimizer, self.objective = engine, optimizer, objective
        self.stage, self.display = stage, display
        self._warned: set[str] = set()

    def begin(self, batch: Batch) -> Look | None:
        """Before the step of a batch; None unless the interval ends in it."""
        if not self.clock.due(self.every, batch.start, batch.end):
            return None
        return Look(self.engine, self.optimizer, self.objective, batch)

    def finish(self, look: Look, row: Record) -> Figures:
        """After the step: record what was seen, and warn, once for each kind of trouble.

        Args:
            row: of the step's metrics.
        """
        figures = look.finish(row["gradient_norm"])
        at_peak = row["learning_rate"] >= NEAR_PEAK * self.clock.stage.learning_rate.peak
        faults = judge(figures, at_peak)
        record: dict[str, Any] = {
            "step": row["step"],
            "global_step": row["global_step"],
            "tokens": row["tokens"],
            "looked_at_tokens": look.tokens,
            "seconds": look.seconds,
            "step_seconds": row["seconds"],
            "faults": faults,
            **figures,
        }
        json_lines.append(self.path, record)
        fresh = [text for kind, text in faults.items() if kind not in self._warned]
        self._warned |= faults.keys()
        if fresh:
            self.display.warn(f"stage {self.stage}: step {row['step']}: {'; '.join(fresh)}")
        return figures


def judge(figures: Figures, at_peak: bool) -> dict[str, str]:
    """What is clearly off: kind of trouble -> words for people.

    Args:
        at_peak: the learning rate is near its peak, so that a small update is no part of the schedule.
    """
    found = {}
    broken = [place for place, value in figures.get("residual_rms", {}).items() if not math.isfinite(value)]
    if broken:
        found["not_finite"] = f"activations are not finite from {broken[0]} on"
    where, score = _largest(figures, "attention_logit_max")
    if score > LARGEST_SCORE:
        found["attention_logit_max"] = (
            f"attention scores reach {score:.0f} in {where}; above {LARGEST_SCORE:g} attention is nearly"
            " one-hot (model.qk_norm bounds them)"
        )
    where, ratio = _largest(figures, "update_ratio")
    if ratio > LARGEST_UPDATE:
        found["update_ratio"] = (
            f"the step changes {where} by {ratio:.0%} of its weights (usual is about 0.1%): the learning rate"
            " is high"
        )
    where, ratio = _largest(figures, "update_ratio", sign=-1)
    if at_peak and -ratio < SMALLEST_UPDATE:
        found["update_ratio_low"] = (
            f"the step changes {where} by {-ratio:.1e} of its weights (usual is about 1e-3): the learning"
            " rate is low"
        )
    for statistic, what in (
        ("dead_units", "hidden units"),
        ("dead_expert_units", "experts' hidden units"),
        ("idle_experts", "experts"),
    ):
        where, share = _largest(figures, statistic)
        if share > MOST_DEAD:
            found[statistic] = f"{share:.0%} of the {what} of {where} never fire"
    return found


def _largest(figures: Figures, statistic: str, sign: int = 1) -> tuple[str, float]:
    """(place, sign * value) of the largest of these; ("", -inf) where there is none."""
    values = {
        place: sign * value for place, value in figures.get(statistic, {}).items() if math.isfinite(value)
    }
    return max(values.items(), key=lambda item: item[1], default=("", -math.inf))
