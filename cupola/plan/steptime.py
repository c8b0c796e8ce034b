"""Seconds that an optimizer step takes on a layout, and what they go to.

So far what each device computes, at one share of its peak: what everyone reckons with on paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cupola.plan import flops
from cupola.plan.figure import Figure
from cupola.plan.hardware import Hardware
from cupola.plan.memory import Run

USUAL = Figure(0.4, 0.25, 0.55)
"""The share of peak that runs of transformers reach."""


@dataclass(frozen=True)
class StepTime:
    """Of one step of a run on its layout.

    Attributes:
        seconds: of the step, with its 90% interval.
        parts: seconds of the slowest device by what they go to, in the order in which they are shown;
            they add up to `seconds.value`.
        flops: of the model for the whole step (no recomputation), convention `exact_full`.
        tokens: of the step.
        mfu: `flops` over what all devices could do in that time.
    """

    seconds: Figure
    parts: Mapping[str, float]
    flops: float
    tokens: int
    mfu: float


def step_time(run: Run, hardware: Hardware) -> StepTime:
    """Of a run whose batch is stated."""
    rows = run.microbatches * run.layout.data * run.layout.rows
    tokens = rows * run.sequence_length
    total = flops.CONVENTIONS["exact_full"].per_token(run.model, run.vocabulary, run.sequence_length) * tokens
    peak = hardware.flops(run.execution.precision) * run.layout.devices
    seconds = Figure.of(total / peak).over(USUAL)
    return StepTime(seconds, {"compute": seconds.value}, total, tokens, total / peak / seconds.value)
