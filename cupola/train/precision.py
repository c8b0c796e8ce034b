"""Which precision is faster for this model on this machine: decided once, by a few real passes.

bf16 halves memory traffic everywhere and doubles the rate of products where the processor has
instructions for it; where it has none it is several times slower, and no list of processors says so
reliably. So both are run, interleaved, and the faster median wins. A GPU that supports bf16 is not asked.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from cupola.data.batch import Microbatch
from cupola.objectives import Objective
from cupola.parallel.device import synchronize
from cupola.parallel.engine import LocalEngine, Precision

ROUNDS = 3
BETTER_BY = 1.05
"""bf16 costs accuracy, so it must be worth at least this factor."""


@dataclass(frozen=True)
class PrecisionChoice:
    """What was taken and why, for the run's record.

    Attributes:
        ratio: seconds of fp32 over seconds of bf16 of a forward and backward pass; None if not measured.
    """

    precision: Precision
    ratio: float | None
    reason: str


def measure_precision(
    module: nn.Module,
    objective: Objective,
    microbatch: Microbatch,
    device: torch.device | str,
    rounds: int = ROUNDS,
) -> PrecisionChoice:
    """Choose between fp32 and bf16 autocast; the module's weights are untouched, its gradients dropped.

    Args:
        microbatch: of the size that training will use.
        rounds: timed passes of each, after one to warm up.
    """
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return PrecisionChoice("bf16", None, "the GPU has bf16")
    names: tuple[Precision, Precision] = ("fp32", "bf16")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            engine = LocalEngine(module, name, device)
            seconds[name].append(time_pass(engine, objective, microbatch))
    fp32, bf16 = (statistics.median(seconds[name][1:]) for name in names)
    ratio = fp32 / bf16
    chosen = names[ratio >= BETTER_BY]
    return PrecisionChoice(chosen, ratio, f"bf16 is {ratio:.2f} times as fast as fp32 here")


def time_pass(engine: LocalEngine, objective: Objective, microbatch: Microbatch) -> float:
    """Seconds of one forward and backward pass; the gradients are dropped."""
    synchronize(engine.device)
    begun = time.perf_counter()
    engine.forward_backward([microbatch], objective, microbatch.targets.numel())
    synchronize(engine.device)
    seconds = time.perf_counter() - begun
    engine.module.zero_grad(set_to_none=True)
    return seconds
