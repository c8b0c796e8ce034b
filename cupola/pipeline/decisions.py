"""What `auto` means on this machine: measured once, said, recorded in the run, and kept on resume."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from cupola import objectives, optim
from cupola.data.batch import Microbatch
from cupola.display import Display
from cupola.models import build, kernels, table
from cupola.parallel.device import Precision, default_device
from cupola.recipe.schema import Recipe
from cupola.train.memory import keep_freed_memory
from cupola.train.peak import matmul_peak
from cupola.train.precision import PASSES, measure_precision

CPU_MICROBATCH_TOKENS = 4096
GPU_MICROBATCH_TOKENS = 32768

PASS_FLOPS = 2e11
"""Work of a pass by which precisions are compared, about: one or two seconds of a slow core."""
FEWEST_TOKENS, MOST_TOKENS = 256, 2048
"""Tokens of such a pass, whatever they cost."""


@dataclass(frozen=True)
class Decisions:
    """The settings of a run that depend on the machine.

    Attributes:
        microbatch_tokens: tokens of one forward and backward pass.
        threads: of torch, on the CPU; a resume with another number is not bit-exact, and says so.
        muon_dtype: of Muon's iteration on this machine, where a stage uses Muon.
        kernels: which package computes each kind of recurrent layer.
        peak_flops: FLOP/s of the fastest matrix product here and now, what utilisation is a share of.
        why: what was measured, for people.
    """

    precision: Precision
    microbatch_tokens: int
    threads: int
    device: str
    vocabulary: int
    muon_dtype: str | None
    kernels: dict[str, str]
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
    microbatch = _microbatch_tokens(recipe, recorded, device)
    muon_dtype = _muon_dtype(recipe, device)
    _say_what_changed(recorded, threads, microbatch, muon_dtype, display)
    precision, why = _precision(recipe, vocabulary, microbatch, recorded, device, display)
    display.say(f"precision {precision} ({why}), {threads} threads on {device.type}")
    used = kernels.in_use(device, set(recipe.model.mixers()))
    if used and device.type != "cpu":
        display.say(", ".join(f"{kind} by the kernels of {package}" for kind, package in used.items()))
    same = recorded.get("precision") == precision and recorded.get("device") == str(device)
    seen = recorded["peak_flops"] if same else 0.0
    return Decisions(
        precision=precision,
        microbatch_tokens=microbatch,
        threads=recorded.get("threads", threads),  # those that it began with
        device=str(device),
        vocabulary=vocabulary,
        muon_dtype=muon_dtype,
        kernels=used,
        # A busy neighbour makes it look slower than it is: the best that this run has seen counts.
        peak_flops=max(matmul_peak(precision, device), seen),
        why=why,
    )


def _say_what_changed(
    recorded: dict[str, Any], threads: int, microbatch: int, muon_dtype: str | None, display: Display
) -> None:
    """A run that goes on under other conditions is not the same to the last bit."""
    differ = "the last bits of its weights may differ"
    if recorded and recorded["threads"] != threads:
        display.warn(
            f"this run began with {recorded['threads']} threads and goes on with {threads}: {differ}"
        )
    before = recorded.get("microbatch_tokens", microbatch)
    if before != microbatch:
        display.say(f"microbatches had {before} tokens and now have {microbatch}: {differ}")
    began = recorded.get("muon_dtype") or muon_dtype
    if muon_dtype and began != muon_dtype:
        display.warn(f"Muon iterated in {began} and now does in {muon_dtype}: updates differ slightly")


def _muon_dtype(recipe: Recipe, device: torch.device) -> str | None:
    kinds = {stage.optimizer.kind for stage in recipe.stages.values() if stage.optimizer}
    return str(optim.iteration_dtype(device)).removeprefix("torch.") if "muon" in kinds else None


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
    name, stage = next(iter(recipe.stages.items()))
    model, length = recipe.model_of(name), stage.longest_row()
    cost = table.flops_per_token(model, vocabulary, length)
    rows, length = sample_shape(length, microbatch_tokens, cost)
    title = f"measuring bf16 against fp32 on {rows} x {length} tokens"
    with display.task(title, total=PASSES, unit="passes") as task:
        module = build(model, vocabulary, recipe.seed, device)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocabulary, (rows, length + 1), generator=generator)
        microbatch = Microbatch.of_rows(tokens).to(device)
        faster, ratio = measure_precision(module, objectives.NextToken(), microbatch, device, task=task)
    return faster, f"measured: bf16 does {ratio:.2f} times the tokens of fp32"


def sample_shape(length: int, microbatch_tokens: int, flops_per_token: float) -> tuple[int, int]:
    """Rows and row length of a pass that stands for a microbatch: whole rows, or where one costs too much, a
    half of it, a quarter, ...; of `FEWEST_TOKENS` at least, since fewer would measure how fast weights are
    read."""
    affordable = max(FEWEST_TOKENS, int(PASS_FLOPS / flops_per_token))
    tokens = min(microbatch_tokens, MOST_TOKENS, affordable)
    while length > tokens:
        length //= 2
    return tokens // length, length
