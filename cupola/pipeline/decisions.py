"""What `auto` means on this machine: measured once, said, recorded in the run, and kept on resume."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from cupola import objectives
from cupola.data.batch import Microbatch
from cupola.display import Display
from cupola.models import build
from cupola.parallel.device import Precision, default_device
from cupola.recipe.schema import Recipe
from cupola.train.memory import keep_freed_memory
from cupola.train.peak import matmul_peak
from cupola.train.precision import measure_precision

CPU_MICROBATCH_TOKENS = 4096
GPU_MICROBATCH_TOKENS = 32768


@dataclass(frozen=True)
class Decisions:
    """The settings of a run that depend on the machine.

    Attributes:
        microbatch_tokens: tokens of one forward and backward pass.
        threads: of torch, on the CPU; a resume with another number is not bit-exact, and says so.
        peak_flops: FLOP/s of the fastest matrix product here and now, what utilisation is a share of.
        why: what was measured, for people.
    """

    precision: Precision
    microbatch_tokens: int
    threads: int
    device: str
    vocabulary: int
    peak_flops: float
    why: str

    def as_json(self) -> dict[str, Any]:
        """For the run's record."""
        return asdict(self)


def decide(recipe: Recipe, vocabulary: int, recorded: dict[str, Any] | None, display: Display) -> Decisions:
    """Resolve every `auto`.

    Args:
        recorded: what an earlier start of this run decided; kept wherever the recipe says `auto`.
    """
    keep_freed_memory()
    device = default_device()
    threads = torch.get_num_threads()
    recorded = recorded or {}
    if recorded and recorded["threads"] != threads:
        display.warn(
            f"this run began with {recorded['threads']} threads and goes on with {threads}:"
            " the last bits of its weights may differ"
        )
    microbatch = _microbatch_tokens(recipe, recorded, device)
    precision, why = _precision(recipe, vocabulary, microbatch, recorded, device, display)
    display.say(f"precision {precision} ({why}), {threads} threads on {device.type}")
    same = recorded.get("precision") == precision and recorded.get("device") == str(device)
    seen = recorded["peak_flops"] if same else 0.0
    return Decisions(
        precision=precision,
        microbatch_tokens=microbatch,
        threads=recorded.get("threads", threads),  # those that it began with
        device=str(device),
        vocabulary=vocabulary,
        # A busy neighbour makes it look slower than it is: the best that this run has seen counts.
        peak_flops=max(matmul_peak(precision, device), seen),
        why=why,
    )


def _microbatch_tokens(recipe: Recipe, recorded: dict[str, Any], device: torch.device) -> int:
    if recipe.scale.microbatch_tokens != "auto":
        return recipe.scale.microbatch_tokens
    if "microbatch_tokens" in recorded:
        return int(recorded["microbatch_tokens"])
    return CPU_MICROBATCH_TOKENS if device.type == "cpu" else GPU_MICROBATCH_TOKENS


def _precision(
    recipe: Recipe,
    vocabulary: int,
    microbatch_tokens: int,
    recorded: dict[str, Any],
    device: torch.device,
    display: Display,
) -> tuple[Precision, str]:
    if recipe.precision != "auto":
        return recipe.precision, "as the recipe says"
    if "precision" in recorded:
        return recorded["precision"], recorded["why"]
    stage = next(iter(recipe.stages.values()))
    assert stage.sequence_length is not None
    length = max(stage.sequence_length.values)
    module = build(recipe.model, vocabulary, recipe.seed, device)
    rows = max(1, min(microbatch_tokens, 2048) // length)
    tokens = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    microbatch = Microbatch.of_rows(tokens).to(device)
    with display.task("measuring bf16 against fp32"):
        faster, ratio = measure_precision(module, objectives.build(stage), microbatch, device)
    return faster, f"measured: bf16 does {ratio:.2f} times the tokens of fp32"
