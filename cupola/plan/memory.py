"""Bytes that training takes on each device, component by component, and whether they fit.

Weights, gradients, masters and optimizer states lie there all the time (`standing`). Activations are those
of the microbatches that a pipeline rank holds at once (`layout`), layer by layer (`activations`). On top of
them comes the larger of two things, which are never there together: the head, with its logits, on the rank of
the last stage; or the backward pass of one layer, what it brings back and its gradients. Each rank is
counted, and the worst is what is needed.

fp8 changes products, not what is kept: its casts are made anew. Not counted: what a framework leaks, an
evaluation in between, a checkpoint's copy. The share `fragmentation` stands for what the allocator holds
and can't use; NCCL, cuBLAS and the CUDA context are a constant.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cupola.models import table
from cupola.models.table import Parameter
from cupola.plan.activations import Kernels, key_bytes, per_token
from cupola.plan.execution import CHUNK, LOGITS, Execution
from cupola.plan.layout import Layout, Stage, declared
from cupola.plan.standing import Group, Held, held, standing
from cupola.recipe.model import Model
from cupola.recipe.schema import Optimizer


@dataclass(frozen=True)
class Memory:
    """Bytes on the devices of one pipeline rank.

    Attributes:
        pipeline: what a rank sent on and awaits the gradient of, and where that arrives.
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
    pipeline: float
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
        passing = max(self.logits, self.backward)
        return self.states + self.activations + self.pipeline + self.gathered + passing

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
            "pipeline": self.pipeline,
            "gathered": self.gathered,
            peak[0]: peak[1],
            "fragmentation": self.fragmentation,
            "context": self.overhead,
        }

    def fits(self, available: float, margin: float = 0.05) -> bool:
        """Whether a device has so many bytes, and a share of them to spare."""
        return self.total <= available * (1 - margin)


@functools.lru_cache(maxsize=16)
def _by_layer(
    model: Model, vocabulary: int, scores: bool
) -> tuple[list[Parameter], list[tuple[Parameter, ...]]]:
    """The parameters outside the layers, and each layer's; layers alike are one and the same object."""
    outside: list[Parameter] = []
    layers: list[list[Parameter]] = [[] for _ in range(model.layers)]
    for parameter in declared(model, vocabulary, scores):
        number = _layer(parameter)
        (outside if number is None else layers[number]).append(parameter)
    alike: dict[tuple[tuple[object, ...], ...], tuple[Parameter, ...]] = {}
    found = [alike.setdefault(tuple((p.shape, p.role, p.cut) for p in own), tuple(own)) for own in layers]
    return outside, found


def _layer(parameter: Parameter) -> int | None:
    words = parameter.name.split(".")
    return int(words[1]) if words[0] == "blocks" else None


@dataclass(frozen=True)
class Run:
    """A model on a layout.

    Attributes:
        vocabulary: rows of embedding and head.
        sequence_length: tokens of a row.
        batch: rows of a step; None: enough to fill the pipeline.
        scores: the model has a scalar head.
        frozen: names of parameters that are not trained.
        added: parameters beside the model's own (LoRA's).
        references: models of the same shape that lie there in 16 bits and are not trained.
    """

    model: Model
    vocabulary: int
    layout: Layout
    sequence_length: int
    batch: int | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    execution: Execution = field(default_factory=Execution)
    scores: bool = False
    frozen: frozenset[str] = frozenset()
    added: tuple[Parameter, ...] = ()
    references: int = 0

    @property
    def tokens(self) -> float:
        """Of a microbatch on one device."""
        return self.layout.rows * self.sequence_length / self.layout.context

    @cached_property
    def ranks(self) -> list[list[Stage]]:
        """The stages that each pipeline rank holds."""
        return self.layout.stages(self.model.layers)

    @property
    def microbatches(self) -> int:
        """Of a step."""
        if self.batch is None:
            return 2 * self.layout.pipeline
        return self.layout.microbatches(self.batch)

    @property
    def gathers_once(self) -> bool:
        """Whether sharded parameters are gathered once for a step, and not layer by layer on both ways."""
        gather = self.execution.gather
        return self.layout.pipeline > 1 if gather is None else gather == "step"

    def _held(self, parameters: Iterable[Parameter]) -> Group:
        return held(parameters, self.layout, self.optimizer, self.frozen)

    @cached_property
    def by_layer(self) -> list[Group]:
        """What each layer holds."""
        _, layers = _by_layer(self.model, self.vocabulary, self.scores)
        if not self.frozen and not self.added:
            alike = {id(own): self._held(own) for own in {id(own): own for own in layers}.values()}
            return [alike[id(own)] for own in layers]
        more = [[p for p in self.added if _layer(p) == number] for number in range(len(layers))]
        return [self._held([*own, *beside]) for own, beside in zip(layers, more, strict=True)]

    @cached_property
    def _outside(self) -> tuple[Group, Group]:
        """What the first stage holds before the layers, and the last after them; a tied head lies on both
        where they are different ranks."""
        outside, _ = _by_layer(self.model, self.vocabulary, self.scores)
        before = [p for p in outside if p.role == "embedding" or p.name.startswith("embedding")]
        after = [p for p in outside if p not in before]
        if self.model.tied and not any(own[0].first and own[-1].last for own in self.ranks):
            after += [p for p in before if p.name == "embedding.weight"]
        return self._held(before), self._held(after)

    def outside(self, stages: Sequence[Stage]) -> Group:
        """What stands outside the layers on a rank that holds these stages."""
        before, after = self._outside
        found = before if any(stage.first for stage in stages) else Group()
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
        return replace(self.execution.kernels, element=self.execution.element)

    def activations(self, rank: int) -> float:
        """Bytes of the layers' activations that a rank holds at once."""
        counts = self.layout.in_flight(rank, self.microbatches)
        return self.tokens * sum(
            count * sum(self.activations_by_layer[layer][0] for layer in stage.layers)
            for stage, count in zip(self.ranks[rank], counts, strict=True)
        )

    def boundaries(self, rank: int) -> float:
        """Bytes of the stages' outputs for microbatches in flight, and of the buffers for their gradients."""
        counts = self.layout.in_flight(rank, self.microbatches)
        sent = sum(count for stage, count in zip(self.ranks[rank], counts, strict=True) if not stage.last)
        cut = self.layout.tensor if self.layout.sequence_parallel else 1
        return 2 * sent * self.execution.element * self.model.width * self.tokens / cut

    def backward(self, rank: int) -> float:
        """Bytes of what one layer's backward pass brings back and makes."""
        own = [self.activations_by_layer[layer] for stage in self.ranks[rank] for layer in stage.layers]
        attended = self._context_buffers() if self.layout.context > 1 else 0.0
        return self.tokens * max((sum(layer[1:]) for layer in own), default=0.0) + attended

    def _context_buffers(self) -> float:
        """Keys and values of whole rows, gathered for one layer, and their gradients."""
        if not {"attention", "sliding_attention"} & set(self.model.mixers()):
            return 0.0
        keys = key_bytes(self.model, self._kernels) / self.layout.tensor
        return 2 * 2 * keys * self.layout.rows * self.sequence_length

    def logits(self) -> float:
        """Bytes of the head on the rank of the last stage: its norm and input, logits and gradients."""
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
    stages = run.ranks[rank]
    groups = [run.outside(stages), *(run.by_layer[one] for stage in stages for one in stage.layers)]
    group = functools.reduce(Group.plus, groups)
    parameters, gradients, masters, optimizer = standing(group, layout, execution, run.references)
    memory = Memory(
        rank=rank,
        parameters=parameters,
        gradients=gradients,
        masters=masters,
        optimizer=optimizer,
        activations=run.activations(rank),
        pipeline=run.boundaries(rank),
        gathered=_gathered(run, groups),
        logits=run.logits() if any(stage.last for stage in stages) else 0.0,
        backward=run.backward(rank),
        fragmentation=0.0,
        overhead=execution.overhead,
    )
    return replace(memory, fragmentation=execution.fragmentation * memory.allocated)


def _gathered(run: Run, groups: Sequence[Group]) -> float:
    """Parameters made whole, and gradients before they are cut.

    Layer by layer: two layers (the next arrives meanwhile), what stands outside them all the time, and the
    fp32 gradients of the largest group on their way; streams of their own hold these, so that they add up.

    Args:
        groups: what stands outside the layers, and each layer.
    """
    layout, execution = run.layout, run.execution
    outside, *layers = [group.whole for group in groups]
    leaving = 4 * max(group.whole.trained for group in groups)
    if layout.shard < 3 or not layout.sharded:
        return leaving if layout.shard == 2 and layout.sharded else 0.0
    if run.gathers_once:
        whole = functools.reduce(Held.plus, layers, outside)
        summed = execution.gradients * whole.trained if run.microbatches > 1 else 0.0
        return execution.element * whole.weights + summed
    largest = max((layer.weights for layer in layers), default=0.0)
    return execution.element * (outside.weights + 2 * largest) + leaving


def by_rank(run: Run) -> list[Memory]:
    """Of every pipeline rank."""
    return [rank_memory(run, rank) for rank in range(run.layout.pipeline)]


def needed(run: Run) -> Memory:
    """Of the rank that needs most."""
    return max(by_rank(run), key=lambda memory: memory.total)
