"""Whether a model can be held at all: asked of the counts before anything is built.

Weights, gradients and the optimizer's state are certain; with them alone above what there is, a run
cannot begin, whatever its batch. What the pass itself takes (activations, temporaries) is not guessed: the
dry run measures it. Where memory runs out all the same, `running_out` makes one line of it.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from cupola.display import count, size
from cupola.errors import CupolaError
from cupola.models import table
from cupola.models.table import trained
from cupola.models.table.states import FP32, state_bytes
from cupola.parallel.device import default_device, total_memory
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer, Recipe, Stage

CONTROL_GROUPS = (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"))
CURE = "lower model.width or model.layers, or take a machine with more memory"


def require_memory(recipe: Recipe, vocabulary: int | None = None) -> None:
    """Refuse a model that this machine cannot hold; takes a fraction of a second for any size.

    Args:
        vocabulary: rows of embedding and head; None while the tokenizer is not known (the fewest count).

    Raises:
        CupolaError: says what is needed and what there is.
    """
    model, least = recipe.model, vocabulary is None
    rows = model.rows(1) if vocabulary is None else vocabulary
    needed, kind = max(_bytes_of_training(model, rows, stage) for stage in recipe.stages.values())
    available, limit = available_memory(default_device())
    if needed > available:
        raise CupolaError(
            f"model: {count(table.count(model, rows))} parameters need {'at least ' if least else ''}"
            f"{size(needed)} of memory (weights, gradients and the state of {kind}, before any"
            f" activation), and {size(available)} {limit}",
            CURE,
        )


def _bytes_of_training(model: Model, rows: int, stage: Stage) -> tuple[int, str]:
    """Bytes that a stage holds from its first step to its last, and the kind of its optimizer."""
    settings = stage.optimizer or Optimizer()
    part = trained.of_stage(model, rows, stage)
    moving = [p for p in table.parameters(model, rows, stage.scores) if p.name in part.own]
    moving += part.adapters
    held = sum(2 * FP32 * p.size + state_bytes(p, settings) for p in moving)
    return held + sum(FP32 * p.size for p in part.frozen), settings.kind


def available_memory(device: torch.device) -> tuple[int, str]:
    """Bytes that this process may still draw on a device, and what sets that limit, for a sentence."""
    if device.type == "cuda":
        return total_memory(device), f"is what {device} has"
    bounds = [(psutil.virtual_memory().available, "is available")]
    bounds += [(limit, "is what its control group allows") for limit in _control_group_limits()]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        left = max(0, space - psutil.Process().memory_info().vms)
        bounds.append((left, "is left under its limit of address space (ulimit -v)"))
    return min(bounds)


def _control_group_limits() -> Iterator[int]:
    """Limits of the groups that hold this process, or of the container's root where it sees no other."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        inner = {line.split(":", 2)[2] for line in lines if line.split(":", 2)[1] in ("", "memory")}
        for root, name in CONTROL_GROUPS:
            for folder in {Path(root)} | {Path(f"{root}{path}") for path in inner}:
                with contextlib.suppress(OSError, ValueError):  # none of this kind, or "max": no limit
                    yield int((folder / name).read_text())


@contextlib.contextmanager
def running_out(what: str) -> Iterator[None]:
    """An allocation that fails inside becomes a CupolaError of one line.

    Args:
        what: was being done, for the message.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_allocation(error):
            raise
        raise CupolaError(
            f"{what}: memory ran out ({_first_line(error)})",
            f"lower scale.microbatch_tokens, or {CURE}",
        ) from error


def _is_allocation(error: BaseException) -> bool:
    """torch has a class of its own for GPUs alone; on the CPU it is a RuntimeError with these words."""
    said = str(error)
    words = ("not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in said.lower() for w in words)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rpartition("DefaultCPUAllocator: ")[2] if lines else "an allocation failed"
