"""One step looked at: activations before it, gradients and the change of the weights around its update.

Guarantees: the training step is the same to the bit. Activations come from a forward pass of their own, under
no_grad, with the weights from before the step, over the first rows of the batch's first microbatch; blocks
that are compiled run eagerly in it and stay compiled. Gradients and weights are read by two hooks of the
optimizer, which exist for this one step. Between looks nothing is there to be paid for.

Costs, of a look: a forward pass of at most `TOKENS` tokens and a quarter of the batch (at least one row),
with attention's scores of those rows once more; a copy of at most `SAMPLED` numbers (4 MB) of each matrix
while the optimizer steps, after the activations are freed; two waits for the device. A hook in the training
pass itself would save the forward pass, but could not see into a compiled block. Of a matrix larger than
`SAMPLED` every k-th row stands for all: a whole copy of the weights could exhaust the memory.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cupola.data.batch import Batch, Microbatch
from cupola.models import probe, statistics
from cupola.models.layer import Carried
from cupola.models.stack import Block, LanguageModel
from cupola.models.table import SCORE
from cupola.models.table.trained import ADAPTERS
from cupola.objectives import Objective
from cupola.parallel.device import autocast
from cupola.parallel.engine import LocalEngine

TOKENS = 2048
SHARE = 0.25
SAMPLED = 2**20
WEIGHED = ("matrix", "embedding", "head")
"""Roles whose update is compared with their weights: the others are few numbers, some of them 0 at first. So
are LoRA's matrices and the scalar head, which are left out."""

Figures = dict[str, dict[str, float]]
"""Statistic -> place (`layer_03`, `embedding`, `head`, ...) -> value."""


class Look:
    """Begin before the step with the constructor, end after it with `finish`.

    Attributes:
        tokens: how many tokens of the batch activations are read of.
        seconds: spent on looking so far.
    """

    def __init__(self, engine: LocalEngine, optimizer: Optimizer, objective: Objective, batch: Batch) -> None:
        begun = time.perf_counter()
        rows = _first_rows(batch)
        self.tokens = rows.tokens.numel()
        activations = Activations(cast(LanguageModel, engine.module))
        with torch.no_grad(), engine.eager(), activations.watched():
            engine.module.train()
            with autocast(engine.device, engine.precision):
                objective.forward(engine.module, rows.to(engine.device))
        self._figures = activations.read()
        self._update = Update(engine.module, optimizer)
        self.seconds = time.perf_counter() - begun

    def finish(self, gradient_norm: float) -> Figures:
        """Everything that was seen; gradients and updates are missing where the step was skipped.

        Args:
            gradient_norm: of the whole batch before clipping, as the step reports it.
        """
        begun = time.perf_counter()
        self._figures |= self._update.read(gradient_norm)
        self.seconds += time.perf_counter() - begun + self._update.seconds
        return self._figures


def place_of(name: str) -> str:
    """A parameter's name -> its layer, or what it belongs to outside the blocks."""
    first, *rest = name.split(".")
    return layer_name(rest[0]) if first == "blocks" else first


def layer_name(block: str) -> str:
    """The number of a block -> `layer_03`."""
    return f"layer_{int(block):02d}"


def _first_rows(batch: Batch) -> Microbatch:
    whole = batch.microbatches[0]
    length = whole.tokens.shape[1]
    most = min(TOKENS, SHARE * sum(part.tokens.numel() for part in batch.microbatches))
    rows = min(len(whole.tokens), max(1, int(most / length)))
    return Microbatch(whole.tokens[:rows], whole.targets[:rows], whole.documents[:rows], whole.sources[:rows])


class Activations:
    """Statistics of one forward pass, layer by layer."""

    def __init__(self, module: LanguageModel) -> None:
        self.module = module
        self._place = ""
        self._values: dict[tuple[str, str], Tensor] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within it a forward pass of the module is recorded."""
        hooks = []
        for number, (name, block) in enumerate(self.module.numbered_blocks()):
            hooks += self._hooks(layer_name(name), block, is_first=number == 0)
        try:
            with probe.observing(self._shown):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def read(self) -> Figures:
        """Wait for the device and give what was recorded."""
        if not self._values:
            return {}
        found: Figures = {}
        values = torch.stack(list(self._values.values())).tolist()
        for (statistic, place), value in zip(self._values, values, strict=True):
            found.setdefault(statistic, {})[place] = value
        return found

    def _hooks(self, place: str, block: Block, is_first: bool) -> list[Any]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._place = place
            if is_first:
                self._values["residual_rms", "embedding"] = statistics.root_mean_square(args[0])

        def leave(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Carried]) -> None:
            x, carried = output
            self._add("residual_rms", statistics.root_mean_square(x))
            for loads in carried.loads:
                self._add("idle_experts", (loads == 0).float().mean())

        def output_of(statistic: str, layer: nn.Module) -> Any:
            def record(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Carried]) -> None:
                self._add(statistic, statistics.root_mean_square(output[0]))

            return layer.register_forward_hook(record)

        hooks = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        hooks.append(output_of("mixer_rms", block.mixer))
        if block.feedforward is not None:
            hooks.append(output_of("feedforward_rms", block.feedforward))
        return hooks

    def _shown(self, name: str, *parts: Any) -> None:
        with torch.autocast(parts[0].device.type, enabled=False):
            if name == "attention":
                self._add("attention_logit_max", statistics.largest_score(*parts))
            elif name == "hidden":
                self._add("dead_units", statistics.dead_share(*parts))
            elif name == "expert_hidden":
                self._add("dead_expert_units", statistics.dead_share_of_experts(*parts))
            elif name == "recurrence":
                rate, a, state = parts
                smallest, largest = statistics.decay_extremes(rate, a)
                self._add("decay_min", smallest)
                self._add("decay_max", largest)
                self._add("state_rms", statistics.root_mean_square(state))

    def _add(self, statistic: str, value: Tensor) -> None:
        self._values[statistic, self._place] = value.float()


class Update:
    """Norms of the gradients, and the change of the weights against them, in the optimizer's next step.

    The change is what the step does to the weights, whatever the optimizer: its weight decay counts.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        roles = {p: group["role"] for group in optimizer.param_groups for p in group["params"]}
        named = [(place_of(name), p) for name, p in module.named_parameters() if p in roles]
        self._parameters = named
        young = {p for name, p in module.named_parameters() if name.endswith((*ADAPTERS, SCORE))}
        self._weighed = [(place, p) for place, p in named if roles[p] in WEIGHED and p not in young]
        self._before: list[Tensor] = []
        self._norms: dict[str, list[tuple[str, Tensor]]] = {}
        self.seconds = 0.0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _before_step(self, *_: Any) -> None:
        begun = time.perf_counter()
        with_gradient = [(place, p.grad) for place, p in self._parameters if p.grad is not None]
        self._keep_norms("gradients", with_gradient)
        self._before = [_sampled(p).clone() for _, p in self._weighed]
        self._keep_norms("weights", list(zip(self._places(), self._before, strict=True)))
        self.seconds += time.perf_counter() - begun

    def _after_step(self, *_: Any) -> None:
        begun = time.perf_counter()
        for before, (_place, parameter) in zip(self._before, self._weighed, strict=True):
            before.sub_(_sampled(parameter))
        self._keep_norms("changes", list(zip(self._places(), self._before, strict=True)))
        self._before = []
        self.seconds += time.perf_counter() - begun

    def _places(self) -> list[str]:
        return [place for place, _ in self._weighed]

    def _keep_norms(self, name: str, tensors: list[tuple[str, Tensor]]) -> None:
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for _, tensor in tensors]
        self._norms[name] = list(zip([place for place, _ in tensors], norms, strict=True))

    def read(self, gradient_norm: float) -> Figures:
        """Take the hooks away, wait for the device, and give the figures; none if no step was made.

        The gradients that the optimizer saw were clipped: their norms are scaled so that the squares of all
        add up to that of `gradient_norm`.
        """
        for hook in self._hooks:
            hook.remove()
        if not self._norms:
            return {}
        flat = [norm for norms in self._norms.values() for _, norm in norms]
        values = iter(torch.stack(flat).tolist())
        totals = {
            name: _by_place([(place, next(values)) for place, _ in norms])
            for name, norms in self._norms.items()
        }
        gradients, weights = totals["gradients"], totals["weights"]
        clipped = math.hypot(*gradients.values())
        scale = gradient_norm / clipped if clipped else 1.0
        return {
            "gradient_norm": {place: scale * norm for place, norm in gradients.items()},
            "update_ratio": {
                place: change / weights[place] if weights[place] else math.nan
                for place, change in totals["changes"].items()
            },
        }


def _by_place(norms: list[tuple[str, float]]) -> dict[str, float]:
    """Norms of parts -> the norm of each place's parts together."""
    parts: dict[str, list[float]] = {}
    for place, norm in norms:
        parts.setdefault(place, []).append(norm)
    return {place: math.hypot(*some) for place, some in parts.items()}


def _sampled(parameter: Tensor) -> Tensor:
    """Every k-th row of a matrix (or of several, the last axis being the rows' own): a view of at most about
    `SAMPLED` numbers; all of it where it is no larger."""
    rows = parameter.detach().flatten(0, -2)
    return rows[:: -(-rows.numel() // SAMPLED)]
