"""What two figures of a row say together: the FLOPs that its authors count for a token."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bench.planner.rows import Row, rounding

PEAKS = ((r"a100", 312e12), (r"h100|h200|h800", 989e12), (r"v100", 125e12), (r"tpu v4", 275e12))
"""Dense 16-bit peaks of the hardware for which utilisations are published as shares, FLOP/s."""
UTILISATIONS = (
    ("flops_per_token", "tflops_per_device"),
    ("flops_per_token", "mfu_pct"),
    ("flops_per_token_hw", "tflops_per_device_hw"),
)
"""What can be derived, and the metric that it takes; the first that a row has."""
SPEEDS = ("tokens_per_s_per_device", "tokens_per_s_total", "step_time_s", "step_time_s_derived")


@dataclass(frozen=True)
class Figure:
    """A derived value, and what part of it the rounding of the printed ones may be."""

    value: float
    slack: float


def figures(row: Row) -> dict[str, Figure]:
    """FLOPs a token by name; `_hw` where what is recomputed is counted too."""
    found: dict[str, Figure] = {}
    for name, metric in UTILISATIONS:
        if name in found or metric not in row.metrics or (speed := next(_speeds(row), None)) is None:
            continue
        rate = row.metrics[metric] * 1e12
        if metric == "mfu_pct":
            if (peak := _peak(row)) is None:
                continue
            rate = row.metrics[metric] / 100 * peak
        found[name] = Figure(rate / speed.value, rounding(row.metrics[metric]) + speed.slack)
    return found


def _speeds(row: Row) -> Iterator[Figure]:
    """Tokens a second and device, by whichever metrics say it."""
    devices, batch, length = row.whole("n_devices"), row.whole("batch"), row.whole("seq")
    for key in SPEEDS:
        if (value := row.metrics.get(key)) is None:
            continue
        if key == "tokens_per_s_per_device":
            yield Figure(value, rounding(value))
        elif key == "tokens_per_s_total" and devices:
            yield Figure(value / devices, rounding(value))
        elif key.startswith("step_time") and devices and batch and length:
            yield Figure(batch * length / value / devices, rounding(value))


def _peak(row: Row) -> float | None:
    hardware = str(row.facts.get("hardware", "")).lower()
    # In 8 bits a share may be of either peak.
    if re.search(r"8|fp4", str(row.facts.get("precision", "")).lower()):
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, hardware)), None)
