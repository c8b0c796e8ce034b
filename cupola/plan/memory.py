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
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cupola.models import table
from cupola.models.table import Parameter
from cupola.plan.activations import Kernels, key_bytes, per_token
from cupola.plan.execution import CHUNK, LOGITS, Execution
from cupola.plan.layout import Layout, Stage, declared
from cupola.plan.standing import Group, held, standing
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
class Holding:
    """What parts of a model hold, where tensor and expert parallelism cut them.

    Attributes:
        layers: of each layer; layers alike are one and the same object.
        kinds: a number for each layer; those of one number hold and keep the same.
        before: outside the layers, on the first stage.
        after: outside them on the last; `apart`: where it is on another rank, with a tied head of its own.
        counted, summed: by the layers of some stages, what `Run.kinds` and `Run.group` have found.
    """

    layers: tuple[Group, ...]
    kinds: tuple[int, ...]
    before: Group
    after: Group
    apart: Group
    counted: dict[tuple[range, ...], dict[int, int]] = field(default_factory=dict)
    summed: dict[tuple[range, ...], Group] = field(default_factory=dict)


@functools.lru_cache(maxsize=128)
def _holding(
    model: Model,
    vocabulary: int,
    scores: bool,
    optimizer: Optimizer,
    frozen: frozenset[str],
    added: tuple[Parameter, ...],
    cuts: Layout,
) -> Holding:
    """Remembered: a search asks for the same cuts of the same model again and again."""

    def of(parameters: Iterable[Parameter]) -> Group:
        return held(parameters, cuts, optimizer, frozen)

    outside, alike = _by_layer(model, vocabulary, scores)
    if frozen or added:
        beside: dict[int | None, list[Parameter]] = {}
        for parameter in added:
            beside.setdefault(_layer(parameter), []).append(parameter)
        layers = [of([*own, *beside.get(number, ())]) for number, own in enumerate(alike)]
    else:
        once = {id(own): of(own) for own in {id(own): own for own in alike}.values()}
        layers = [once[id(own)] for own in alike]
    numbers: dict[tuple[table.Block, Group], int] = {}
    kinds = [numbers.setdefault(kind, len(numbers)) for kind in zip(table.blocks(model), layers, strict=True)]
    before = [p for p in outside if p.role == "embedding" or p.name.startswith("embedding")]
    after = [p for p in outside if p not in before]
    head = [p for p in before if p.name == "embedding.weight" and model.tied]
    return Holding(tuple(layers), tuple(kinds), of(before), of(after), of([*after, *head]))


@functools.lru_cache(maxsize=256)
def _keeping(
    model: Model, sequence_length: int, kernels: Kernels, cuts: Layout
) -> tuple[tuple[float, float, float], ...]:
    """Of each layer, `activations.per_token`."""
    found: dict[table.Block, tuple[float, float, float]] = {}
    blocks = table.blocks(model)
    for layer, block in enumerate(blocks):
        if block not in found:
            found[block] = per_token(model, layer, sequence_length, kernels, cuts)
    return tuple(found[block] for block in blocks)


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

    @cached_property
    def _holding(self) -> Holding:
        cuts = Layout(tensor=self.layout.tensor, expert=self.layout.expert)
        own = self.model, self.vocabulary, self.scores, self.optimizer, self.frozen, self.added
        return _holding(*own, cuts)

    @property
    def by_layer(self) -> tuple[Group, ...]:
        """What each layer holds."""
        return self._holding.layers

    def kinds(self, stages: Sequence[Stage]) -> dict[int, int]:
        """A layer of each kind that these stages have, and how many of it."""
        key = tuple(stage.layers for stage in stages)
        found = self._holding.counted.get(key)
        if found is None:
            kinds = self._holding.kinds
            counts = Counter(kind for layers in key for kind in kinds[layers.start : layers.stop])
            found = {kinds.index(kind): count for kind, count in counts.items()}
            self._holding.counted[key] = found
        return found

    def outside(self, stages: Sequence[Stage]) -> Group:
        """What stands outside the layers on a rank that holds these stages; a tied head lies on the first
        and the last where they are different ranks."""
        holding, first = self._holding, any(stage.first for stage in stages)
        found = holding.before if first else Group()
        if any(stage.last for stage in stages):
            return found.plus(holding.after if first else holding.apart)
        return found

    def group(self, stages: Sequence[Stage]) -> Group:
        """All that a rank holds which has these stages."""
        key = tuple(stage.layers for stage in stages)
        found = self._holding.summed.get(key)
        if found is None:
            found = self.outside(stages)
            for layer, count in self.kinds(stages).items():
                found = found.plus(self.by_layer[layer].times(count))
            self._holding.summed[key] = found
        return found

    @cached_property
    def activations_by_layer(self) -> tuple[tuple[float, float, float], ...]:
        """Of each layer, `activations.per_token`."""
        own = self.layout
        cuts = Layout(
            tensor=own.tensor,
            sequence_parallel=own.sequence_parallel,
            checkpointing=own.checkpointing,
        )
        return _keeping(self.model, self.sequence_length, self._kernels, cuts)

    @property
    def _kernels(self) -> Kernels:
        return replace(self.execution.kernels, element=self.execution.element)

    def activations(self, rank: int) -> float:
        """Bytes of the layers' activations that a rank holds at once."""
        counts = self.layout.in_flight(rank, self.microbatches)
        kept = self.activations_by_layer
        return self.tokens * sum(
            count * sum(number * kept[layer][0] for layer, number in self.kinds([stage]).items())
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
        own = [self.activations_by_layer[layer] for layer in self.kinds(self.ranks[rank])]
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
    group = run.group(stages)
    parameters, gradients, masters, optimizer = standing(group, layout, execution, run.references)
    memory = Memory(
        rank=rank,
        parameters=parameters,
        gradients=gradients,
        masters=masters,
        optimizer=optimizer,
        activations=run.activations(rank),
        pipeline=run.boundaries(rank),
        gathered=_gathered(run, stages, group),
        logits=run.logits() if any(stage.last for stage in stages) else 0.0,
        backward=run.backward(rank),
        fragmentation=0.0,
        overhead=execution.overhead,
    )
    return replace(memory, fragmentation=execution.fragmentation * memory.allocated)


def _gathered(run: Run, stages: Sequence[Stage], group: Group) -> float:
    """Parameters made whole, and gradients before they are cut.

    Layer by layer: two layers (the next arrives meanwhile), what stands outside them all the time, and the
    fp32 gradients of the largest group on their way; streams of their own hold these, so that they add up.

    Args:
        group: all that the rank holds.
    """
    layout, execution = run.layout, run.execution
    if layout.shard < 2 or not layout.sharded:
        return 0.0
    outside = run.outside(stages).whole
    layers = [run.by_layer[layer].whole for layer in run.kinds(stages)]
    leaving = 4 * max(one.trained for one in (outside, *layers))
    if layout.shard == 2:
        return leaving
    if run.gathers_once:
        whole = group.whole
        summed = execution.gradients * whole.trained if run.microbatches > 1 else 0.0
        return execution.element * whole.weights + summed
    largest = max((layer.weights for layer in layers), default=0.0)
    return execution.element * (outside.weights + 2 * largest) + leaving


def by_rank(run: Run) -> list[Memory]:
    """Of every pipeline rank."""
    return [rank_memory(run, rank) for rank in range(run.layout.pipeline)]


def needed(run: Run) -> Memory:
    """Of the rank that needs most. One that holds the same layers as a rank before it, and of them no more
    microbatches, needs no more than that."""
    found: list[Memory] = []
    seen: dict[tuple[object, ...], list[int]] = {}
    for rank, stages in enumerate(run.ranks):
        counts = run.layout.in_flight(rank, run.microbatches)
        alike = [(stage.first, stage.last, *run.kinds([stage]).items()) for stage in stages]
        before = seen.setdefault(tuple(alike), counts)
        if before is counts or any(map(operator.gt, counts, before)):
            found.append(rank_memory(run, rank))
    return max(found, key=lambda memory: memory.total)
