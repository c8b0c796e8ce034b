"""Which precision is faster for this model on this machine: decided once, by a few real passes.

bf16 halves memory traffic everywhere and doubles the rate of products where the processor has
instructions for it; where it has none it is several times slower, and no list of processors says so
reliably. So both are run in turns, and the faster of the best passes wins: the best one, because another
program on the machine can only make a pass slower. A GPU that supports bf16 takes it in
any case, since it halves the activations.
"""

import time

import torch
from torch import nn

from cupola.data.batch import Microbatch
from cupola.display import Task
from cupola.objectives import Objective
from cupola.parallel.device import Precision, synchronize
from cupola.parallel.engine import LocalEngine

ROUNDS = 4
"""Timed passes of each precision, after one to warm up."""
PASSES = 2 * (ROUNDS + 1)
SECONDS = 8.0
"""After so long two rounds must do."""

BETTER_BY = 1.05
"""bf16 costs accuracy, so it must be worth at least this factor."""


def measure_precision(
    module: nn.Module,
    objective: Objective,
    microbatch: Microbatch,
    device: torch.device | str,
    rounds: int = ROUNDS,
    task: Task | None = None,
) -> tuple[Precision, float]:
    """Choose between fp32 and bf16 autocast; the module's weights are untouched, its gradients dropped.

    Args:
        microbatch: as training will use, or a part of one.
        rounds: timed passes of each, after one to warm up; fewer where they are slow.
        task: moved on by one with each of `PASSES` passes.

    Returns:
        The precision, and how many times as fast as fp32 bf16 is.
    """
    device = torch.device(device)
    names: tuple[Precision, Precision] = ("fp32", "bf16")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 2 and time.perf_counter() - begun > SECONDS:
            break
        for name in names:
            engine = LocalEngine(module, name, device)
            if task is not None:
                task.note(name if turn else f"{name}, warming up")
            seconds[name].append(time_pass(engine, objective, microbatch))
            if task is not None:
                task.advance()
    fp32, bf16 = (min(seconds[name][1:]) for name in names)
    ratio = fp32 / bf16
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return ("bf16" if supported or ratio >= BETTER_BY else "fp32"), ratio


def time_pass(engine: LocalEngine, objective: Objective, microbatch: Microbatch) -> float:
    """Seconds of one forward and backward pass; the gradients are dropped."""
    synchronize(engine.device)
    begun = time.perf_counter()
    engine.forward_backward([microbatch], objective, microbatch.targets.numel())
    synchronize(engine.device)
    seconds = time.perf_counter() - begun
    engine.module.zero_grad(set_to_none=True)
    return seconds
