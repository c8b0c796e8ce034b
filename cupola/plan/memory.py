"""Bytes that training takes on each device, component by component, and whether they fit.

The weights, their gradients, fp32 masters and the optimizer's states lie there all the time, cut by tensor,
pipeline, expert, and by what is sharded. Activations are those of the microbatches that a pipeline rank holds
at once (`layout`), layer by layer (`activations`). On top of them comes the larger of two things, which
are never there together: the head, with its logits, on the rank of the last stage; or the backward pass
of one layer, what it brings back and its gradients. Each rank is counted, and the worst is what is needed.

Precisions: bf16, fp16 and fp8 keep 16-bit weights (2 bytes), masters (4), gradients (4, or 2) and states (AdamW
8); fp32 keeps weights, gradients and states. Sharded parameters (stage 3) have no 16-bit copy but the
layers that are gathered just then. fp8 changes products, not what is kept: its casts are made anew.

Not counted: what a framework leaks, an evaluation in between, a checkpoint's copy. The share
`fragmentation` stands for what the allocator holds and can't use; NCCL, cuBLAS and the CUDA context are a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from cupola.models import table
from cupola.models.table import Parameter
from cupola.models.table.states import state_bytes
from cupola.plan.activations import Kernels, per_token
from cupola.plan.layout import Layout, Stage
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer

Precision = Literal["bf16", "fp16", "fp32", "fp8"]
Loss = Literal["eager", "vocabulary_parallel", "in_place", "compiled", "chunked"]
GIB = 2.0**30

LOGITS: dict[Loss, float] = {"eager": 12, "vocabulary_parallel": 16, "in_place": 8, "compiled": 4}
"""Bytes for each logit where a loss is dearest.

- eager: torch's `cross_entropy` of fp32 logits: log-probabilities, their gradient, the logits' gradient.
- vocabulary_parallel: torch's `loss_parallel`: log-probabilities, zeros like them, exponentials, their sum.
- in_place: Megatron-LM's and nanotron's: fp32 logits, and the softmax that becomes the gradient.
- compiled: 16-bit logits and their gradient.

`chunked`, ours, holds `CHUNK` bytes of logits, and the gradients of its weight and input."""
CHUNK = 256 * 2.0**20


@dataclass(frozen=True)
class Execution:
    """How it is computed.

    Attributes:
        gradients: bytes of a gradient that lies there (4 where 16-bit ones are summed in fp32).
        copies: 16-bit weights lie beside fp32 masters also where both are sharded (DeepSpeed's stage 3; FSDP
            has none).
        gather: of sharded parameters, layer by layer, or all of a rank once for a step; by default once where
            there is a pipeline, whose microbatches would gather them again and again.
        fragmentation: as a share of what is allocated.
        overhead: bytes outside the allocator: CUDA's context, NCCL, cuBLAS.
    """

    precision: Precision = "bf16"
    gradients: int = 4
    copies: bool = False
    gather: Literal["layer", "step"] | None = None
    kernels: Kernels = field(default_factory=Kernels)
    loss: Loss = "chunked"
    fragmentation: float = 0.05
    overhead: float = 1.5 * GIB

    @property
    def element(self) -> int:
        """Bytes of a weight as products take it."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class Memory:
    """Bytes on the devices of one pipeline rank.

    Attributes:
        gathered: sharded parameters made whole, and gradients before they are cut.
        logits: what the head takes beyond activations.
        backward: what one layer's backward pass takes beyond them.
    """

    rank: int
    parameters: float
    gradients: float
    masters: float
    optimizer: float
    activations: float
    gathered: float
    logits: float
    backward: float
    fragmentation: float
    overhead: float

    @property
    def states(self) -> float:
        """What lies there all the time."""
        return self.parameters + self.gradients + self.masters + self.optimizer

    @property
    def allocated(self) -> float:
        """At the peak, in the allocator's count."""
        return self.states + self.activations + self.gathered + max(self.logits, self.backward)

    @property
    def reserved(self) -> float:
        """What the allocator holds."""
        return self.allocated + self.fragmentation

    @property
    def total(self) -> float:
        """What the device has to have."""
        return self.reserved + self.overhead

    def components(self) -> dict[str, float]:
        """They add up to the total: of logits and backward pass the larger."""
        peak = ("logits", self.logits) if self.logits >= self.backward else ("backward pass", self.backward)
        return {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "master weights": self.masters,
            "optimizer states": self.optimizer,
            "activations": self.activations,
            "gathered": self.gathered,
            peak[0]: peak[1],
            "fragmentation": self.fragmentation,
            "context": self.overhead,
        }

    def fits(self, available: float, margin: float = 0.05) -> bool:
        """Whether a device has so many bytes, and a share of them to spare."""
        return self.total <= available * (1 - margin)


@dataclass(frozen=True)
class Held:
    """Numbers that a device holds of some parameters before anything is sharded, experts apart from the
    rest; `states` are the bytes of the optimizer."""

    dense: float = 0.0
    experts: float = 0.0
    dense_states: float = 0.0
    expert_states: float = 0.0

    def plus(self, other: "Held") -> "Held":
        """Both."""
        return Held(
            self.dense + other.dense,
            self.experts + other.experts,
            self.dense_states + other.dense_states,
            self.expert_states + other.expert_states,
        )

    @property
    def numbers(self) -> float:
        """All of them."""
        return self.dense + self.experts


def held(parameters: Sequence[Parameter], layout: Layout, optimizer: Optimizer) -> Held:
    """What tensor and expert parallelism leave on a device of some parameters. What is cut by rows of the
    vocabulary is padded; SOAP's covariances, which are of whole matrices, are shared out like these."""
    found = Held()
    for parameter in parameters:
        ways = 1 if parameter.cut.startswith("replicate") else layout.tensor
        is_expert = len(parameter.shape) == 3
        share = 1 / ways / (layout.expert if is_expert else 1)
        numbers, states = parameter.size * share, state_bytes(parameter, optimizer) * share
        if parameter.cut == "vocabulary":
            numbers = float(-(-parameter.shape[0] // ways) * parameter.shape[1])
        found = found.plus(Held(0, numbers, 0, states) if is_expert else Held(numbers, 0, states, 0))
    return found


@dataclass(frozen=True)
class Run:
    """A model on a layout.

    Attributes:
        vocabulary: rows of embedding and head.
        sequence_length: tokens of a row.
        batch: rows of a step; None: enough to fill the pipeline.
        scores: the model has a scalar head.
    """

    model: Model
    vocabulary: int
    layout: Layout
    sequence_length: int
    batch: int | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    execution: Execution = field(default_factory=Execution)
    scores: bool = False

    @property
    def tokens(self) -> float:
        """Of a microbatch on one device."""
        return self.layout.rows * self.sequence_length / self.layout.context

    @property
    def microbatches(self) -> int:
        """Of a step."""
        if self.batch is None:
            return 2 * self.layout.pipeline
        return self.layout.microbatches(self.batch)

    @cached_property
    def by_layer(self) -> list[Held]:
        """What each layer holds."""
        layers: list[list[Parameter]] = [[] for _ in range(self.model.layers)]
        for parameter in table.parameters(self.model, self.vocabulary):
            if parameter.name.startswith("blocks."):
                layers[parameter.layer].append(parameter)
        seen: dict[tuple[tuple[object, ...], ...], Held] = {}
        found = []
        for own in layers:
            key = tuple((p.shape, p.role, p.cut) for p in own)
            if key not in seen:
                seen[key] = held(own, self.layout, self.optimizer)
            found.append(seen[key])
        return found

    @cached_property
    def _outside(self) -> tuple[Held, Held]:
        """What the first stage holds before the layers, and the last after them; a tied head lies on both
        where they are different ranks."""
        parameters = table.parameters(self.model, self.vocabulary, self.scores)
        outside = [p for p in parameters if not p.name.startswith("blocks.")]
        before = [p for p in outside if p.role == "embedding" or p.name.startswith("embedding")]
        after = [p for p in outside if p not in before]
        ranks = self.layout.stages(self.model.layers)
        if self.model.tied and not any(own[0].first and own[-1].last for own in ranks):
            after += [p for p in before if p.name == "embedding.weight"]
        return held(before, self.layout, self.optimizer), held(after, self.layout, self.optimizer)

    def outside(self, stages: Sequence[Stage]) -> Held:
        """What stands outside the layers on a rank that holds these stages."""
        before, after = self._outside
        found = before if any(stage.first for stage in stages) else Held()
        return found.plus(after) if any(stage.last for stage in stages) else found

    @cached_property
    def activations_by_layer(self) -> list[tuple[float, float, float]]:
        """Of each layer, `activations.per_token`."""
        found: dict[table.Block, tuple[float, float, float]] = {}
        kernels = self._kernels
        blocks = table.blocks(self.model)
        for layer, block in enumerate(blocks):
            if block not in found:
                found[block] = per_token(self.model, layer, self.sequence_length, kernels, self.layout)
        return [found[block] for block in blocks]

    @property
    def _kernels(self) -> Kernels:
        own = self.execution.kernels
        return Kernels(self.execution.element, own.flash, own.fused, own.dropout, own.regather)

    def activations(self, rank: int) -> float:
        """Bytes of the layers' activations that a rank holds at once."""
        stages = self.layout.stages(self.model.layers)[rank]
        counts = self.layout.in_flight(rank, self.microbatches)
        return self.tokens * sum(
            count * sum(self.activations_by_layer[layer][0] for layer in stage.layers)
            for stage, count in zip(stages, counts, strict=True)
        )

    def backward(self, rank: int) -> float:
        """Bytes of what one layer's backward pass brings back and makes."""
        stages = self.layout.stages(self.model.layers)[rank]
        own = [self.activations_by_layer[layer] for stage in stages for layer in stage.layers]
        attended = self._context_buffers() if self.layout.context > 1 else 0.0
        return self.tokens * max((sum(layer[1:]) for layer in own), default=0.0) + attended

    def _context_buffers(self) -> float:
        """Keys and values of two workers, while those of the next arrive, and their gradients."""
        if not {"attention", "sliding_attention"} & set(self.model.mixers()):
            return 0.0
        sizes = self.model.sizes()
        keys = 2 * self.execution.element * sizes.key_value_heads * sizes.head_width / self.layout.tensor
        return 4 * keys * self.tokens

    def logits(self) -> float:
        """Bytes of the head on the rank of the last stage: its norm, its input, logits and their gradients."""
        tensor, element, width = self.layout.tensor, self.execution.element, self.model.width
        cut = tensor if self.layout.sequence_parallel else 1
        stream = element * width * self.tokens
        gathered = stream if tensor > 1 and not self.execution.kernels.regather else stream / cut
        entrance = stream / cut + gathered
        rows = -(-self.vocabulary // tensor)
        if self.execution.loss == "chunked":
            whole = self.tokens * rows * element
            return entrance + stream + 4 * rows * width + 3 * min(CHUNK, whole)
        size = LOGITS[self.execution.loss]
        if self.execution.loss == "eager" and self.execution.precision == "fp32":
            size += 4  # the logits themselves are what the loss is made of
        return entrance + size * rows * self.tokens


def rank_memory(run: Run, rank: int) -> Memory:
    """Bytes on the devices of one pipeline rank."""
    layout, execution = run.layout, run.execution
    stages = layout.stages(run.model.layers)[rank]
    outside, layers = run.outside(stages), [run.by_layer[one] for stage in stages for one in stage.layers]
    whole = outside
    for one in layers:
        whole = whole.plus(one)
    shard = layout.shard if layout.shards > 1 else 0
    expert_shards = layout.shards / layout.expert

    def cut(stage: int) -> float:
        """Numbers that are left where this is sharded from that stage on."""
        if shard < stage:
            return whole.numbers
        return whole.dense / layout.shards + whole.experts / expert_shards

    mixed = execution.precision != "fp32"
    states = whole.dense_states + whole.expert_states
    if shard >= 1:
        states = whole.dense_states / layout.shards + whole.expert_states / expert_shards
    own_copy = mixed and shard == 3 and not execution.copies
    gathered = _gathered(run, shard, outside, layers, whole)
    memory = Memory(
        rank=rank,
        parameters=0.0 if own_copy else execution.element * cut(3),
        gradients=execution.gradients * cut(2) if mixed else 4 * cut(2),
        masters=4 * cut(1) if mixed else 0.0,
        optimizer=states,
        activations=run.activations(rank),
        gathered=gathered,
        logits=run.logits() if any(stage.last for stage in stages) else 0.0,
        backward=run.backward(rank),
        fragmentation=0.0,
        overhead=execution.overhead,
    )
    return _with_fragmentation(memory, execution.fragmentation)


def _gathered(run: Run, shard: int, outside: Held, layers: Sequence[Held], whole: Held) -> float:
    """Parameters made whole, and gradients before they are cut.

    Layer by layer: two layers (the next arrives meanwhile), what stands outside them all the time, and the
    fp32 gradients of the largest group on their way; streams of their own hold these, so that they add up.
    """
    layout, execution = run.layout, run.execution
    element = execution.element
    largest = max((one.numbers for one in layers), default=0.0)
    if shard == 3:
        once = layout.pipeline > 1 if execution.gather is None else execution.gather == "step"
        if once:
            sharded_gradients = run.microbatches > 1
            return whole.numbers * (element + (execution.gradients if sharded_gradients else 0))
        return element * (outside.numbers + 2 * largest) + 4 * max(outside.numbers, largest)
    return 4 * max(outside.numbers, largest) if shard == 2 else 0.0


def _with_fragmentation(memory: Memory, share: float) -> Memory:
    values = {name: getattr(memory, name) for name in memory.__dataclass_fields__}
    return Memory(**values | {"fragmentation": share * memory.allocated})


def by_rank(run: Run) -> list[Memory]:
    """Of every pipeline rank."""
    return [rank_memory(run, rank) for rank in range(run.layout.pipeline)]


def needed(run: Run) -> Memory:
    """Of the rank that needs most."""
    return max(by_rank(run), key=lambda memory: memory.total)
