"""How a run is spread over devices, what each pipeline rank then holds, and what can't be.

    devices = data x tensor x pipeline x context; the workers of `expert` are among those of data x context

A microbatch is `rows` rows of one data-parallel worker. Pipeline stages are cut between layers; where they
don't divide evenly, stages in the middle take one more (the first also has the embedding, the last the
head). How many microbatches a rank holds the activations of, p stages, rank r, m microbatches, v chunks:

    gpipe        m                                     Huang et al. 2019
    1f1b         p - r                                 Narayanan et al. 2021 (PipeDream-Flush)
    interleaved  2 (p - r - 1) + (v - 1) p + 1 chunks  the same; at r = 0 (1 + (p - 1) / (p v)) of 1f1b's
    zb-h1        p                                     Qi et al. 2023, arXiv:2401.10241
    zb-h2        2 (p - r) - 1                         the same
    zb-v         p of each of 2 chunks                 Qi et al. 2024, arXiv:2405.15362

and never more than there are.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cupola.models import table
from cupola.models.table import Parameter
from cupola.recipe.model import Model
from cupola.recipe.strict import round_up

Schedule = Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"]
Checkpointing = Literal["none", "selective", "operators", "full"]
SHARDED = ("nothing", "optimizer states", "and gradients", "and parameters")
"""What each stage of sharding over data x context cuts (Rajbhandari et al. 2020)."""


@dataclass(frozen=True)
class Stage:
    """A run of layers that stand together in the pipeline.

    Attributes:
        layers: their numbers.
        first, last: it has the embedding; the head.
    """

    layers: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Layout:
    """See the module's docstring.

    Attributes:
        shard: 0 to 3, an index of `SHARDED`.
        sequence_parallel: with tensor > 1, what is between the cut matrices is cut by positions
            (Korthikanti et al. 2022).
        chunks: stages of each rank, of schedule interleaved.
        layers: of each stage, in their order; by default as even as can be.
        checkpointing: what is kept of a layer for its backward pass. none: everything. selective: all but
            the inside of attention or of a scan (Korthikanti et al. 2022). operators: the outputs of these
            and of every other matrix product (torchtitan's `op`). full: the layer's input.
    """

    data: int = 1
    shard: int = 0
    tensor: int = 1
    sequence_parallel: bool = True
    pipeline: int = 1
    schedule: Schedule = "1f1b"
    chunks: int = 1
    layers: tuple[int, ...] = ()
    context: int = 1
    expert: int = 1
    rows: int = 1
    checkpointing: Checkpointing = "none"

    @property
    def devices(self) -> int:
        """How many it takes."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def shards(self) -> int:
        """Workers over which shard stages cut: sequences are cut among them as well as rows."""
        return self.data * self.context

    @property
    def sharded(self) -> bool:
        """Whether anything is."""
        return self.shard > 0 and self.shards > 1

    @property
    def stage_count(self) -> int:
        """Pipeline stages, of all ranks."""
        return self.pipeline * (2 if self.schedule == "zb-v" else self.chunks)

    def microbatches(self, batch: int) -> int:
        """Of a step on `batch` rows."""
        return max(1, batch // (self.data * self.rows))

    def stages(self, model_layers: int) -> list[list[Stage]]:
        """By rank, the stages that it holds."""
        sizes = self.layers or _even(model_layers, self.stage_count)
        return _by_rank(sizes, self.pipeline, self.schedule == "zb-v")

    def in_flight(self, rank: int, microbatches: int) -> list[int]:
        """Microbatches that a rank holds the activations of at its peak, for each of its stages."""
        ahead, count = self.pipeline - rank, self.stage_count // self.pipeline
        if self.schedule == "interleaved":
            most = min(microbatches * count, 2 * (ahead - 1) + (count - 1) * self.pipeline + 1)
            held = [0] * count
            for number in range(most):
                held[number // self.pipeline % count] += 1
            return held
        most = {
            "gpipe": microbatches,
            "1f1b": ahead,
            "zb-h1": self.pipeline,
            "zb-h2": 2 * ahead - 1,
            "zb-v": self.pipeline,
        }[self.schedule]
        return [min(microbatches, most)] * count


@functools.lru_cache(maxsize=256)
def _by_rank(sizes: tuple[int, ...], pipeline: int, returns: bool) -> list[list[Stage]]:
    starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    last = len(sizes) - 1
    stages = [
        Stage(range(starts[number], starts[number + 1]), number == 0, number == last)
        for number in range(len(sizes))
    ]
    if returns:  # there and back again: the first rank also has the last stage
        return [[stages[rank], stages[last - rank]] for rank in range(pipeline)]
    return [stages[rank::pipeline] for rank in range(pipeline)]


def _even(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage; what is left over goes to those in the middle first."""
    base, left = divmod(layers, stages)
    order = [*range(1, stages - 1), 0, stages - 1] if stages > 1 else [0]
    more = set(order[:left])
    return tuple(base + (stage in more) for stage in range(stages))


@functools.lru_cache(maxsize=16)
def declared(model: Model, vocabulary: int, scores: bool = False) -> tuple[Parameter, ...]:
    """`table.parameters`, remembered: a search asks for them again and again."""
    return tuple(table.parameters(model, vocabulary, scores))


def faults(
    model: Model,
    vocabulary: int,
    layout: Layout,
    devices: int,
    sequence_length: int,
    batch: int | None = None,
) -> list[str]:
    """What is impossible, one line each with what would work; empty where all is well.

    Args:
        vocabulary: rows of embedding and head.
        devices: that there are.
        sequence_length: tokens of a row.
        batch: rows of a step, over all devices; None: not held against the layout.
    """
    if small := [f"{name} {value}: can't be; at least 1" for name, value in _sizes(layout) if value < 1]:
        return small
    if layout.shard not in range(4):
        return [f"shard {layout.shard}: can't be; 0 to 3"]
    found = [*_devices(layout, devices), *_tensor(model, vocabulary, layout.tensor)]
    found += [*_pipeline(model, layout), *_context(layout, sequence_length), *_experts(model, layout)]
    return found + (list(_batch(layout, batch)) if batch is not None else [])


def _sizes(layout: Layout) -> list[tuple[str, int]]:
    names = ("data", "tensor", "pipeline", "chunks", "context", "expert", "rows")
    return [(name, getattr(layout, name)) for name in names]


def _devices(layout: Layout, devices: int) -> Iterator[str]:
    if layout.devices == devices:
        return
    others = layout.tensor * layout.pipeline * layout.context
    product = (
        f"data {layout.data} x tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context}"
    )
    if devices % others == 0:
        cure = f"data {devices // others} would use them all"
    else:
        cure = (
            f"tensor x pipeline x context is {others}, which does not divide them;"
            f" {_list([one for one in _divisors(devices) if one <= 64])} would"
        )
    yield f"{product} takes {layout.devices} devices and there are {devices}; {cure}"


@functools.lru_cache(maxsize=256)
def _tensor(model: Model, vocabulary: int, tensor: int) -> tuple[str, ...]:
    if tensor == 1:
        return ()
    common, first = 0, None
    for parameter in declared(model, vocabulary):
        if (parts := _parts(parameter)) is not None:
            common = math.gcd(common, parts)
            if first is None and parts % tensor:
                first = parameter, parts
    if first is None:
        return ()
    parameter, parts = first
    return (
        f"tensor {tensor}: {parameter.name} can be cut into {parts} whole parts"
        f" ({parameter.unit} rows each); {_list(_divisors(common))} would do",
    )


def _parts(parameter: Parameter) -> int | None:
    """Into how many parts tensor parallelism can cut a parameter; None: it needs not to be. The vocabulary
    is padded where it doesn't divide."""
    if parameter.cut == "rowwise":
        return parameter.shape[-1]
    if parameter.cut != "colwise":
        return None
    matrix = parameter.role in ("matrix", "low_rank") or len(parameter.shape) > 1
    return parameter.shape[-2 if matrix else -1] // parameter.unit


def _pipeline(model: Model, layout: Layout) -> Iterator[str]:
    if layout.chunks > 1 and layout.schedule != "interleaved":
        yield f"chunks {layout.chunks}: schedule {layout.schedule} has none; take schedule interleaved"
    if layout.schedule == "interleaved" and layout.chunks == 1:
        yield "schedule interleaved: needs chunks 2 or more; with 1 it is 1f1b"
    if layout.schedule == "interleaved" and layout.pipeline == 1:
        yield "schedule interleaved: needs pipeline 2 or more"
    if layout.stage_count > model.layers:
        yield (
            f"pipeline {layout.pipeline}: {layout.stage_count} stages are more than {model.layers} layers;"
            f" at most {max(1, model.layers * layout.pipeline // layout.stage_count)} would do"
        )
    elif layout.layers and (len(layout.layers), sum(layout.layers)) != (layout.stage_count, model.layers):
        yield (
            f"layers {list(layout.layers)}: {layout.stage_count} stages with {model.layers} layers in all are"
            " expected"
        )


def _context(layout: Layout, sequence_length: int) -> Iterator[str]:
    if sequence_length % layout.context:
        fitting = [one for one in _divisors(sequence_length) if one <= max(64, layout.context)]
        yield (
            f"context {layout.context}: does not divide rows of {sequence_length} tokens; {_list(fitting)}"
            " would do"
        )


def _experts(model: Model, layout: Layout) -> Iterator[str]:
    if layout.expert == 1:
        return
    if model.experts is None:
        yield f"expert {layout.expert}: the model has no experts; 1 would do"
        return
    fitting = _divisors(math.gcd(model.experts.count, layout.shards))
    if layout.expert not in fitting:
        yield (
            f"expert {layout.expert}: must divide {model.experts.count} experts and data x context"
            f" {layout.shards}; {_list(fitting)} would do"
        )


def _batch(layout: Layout, batch: int) -> Iterator[str]:
    unit = layout.data * layout.rows
    if batch % unit:
        below, above = batch // unit * unit, round_up(batch, unit)
        near = f"{below} or {above}" if below else f"{above}"
        fewer = f", or --rows 1 with {batch}" if layout.rows > 1 and batch % layout.data == 0 else ""
        yield (
            f"a batch of {batch} rows: no multiple of data {layout.data} x rows {layout.rows}; {near} rows"
            f" would be{fewer}"
        )
    elif layout.schedule == "interleaved" and layout.microbatches(batch) % layout.pipeline:
        yield (
            f"schedule interleaved: {layout.microbatches(batch)} microbatches are no multiple of pipeline"
            f" {layout.pipeline}; {unit * layout.pipeline} rows a batch, or a multiple, would do"
        )


def _divisors(number: int) -> list[int]:
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return small + [number // one for one in reversed(small) if one * one != number]


def _list(numbers: list[int]) -> str:
    shown = [str(one) for one in numbers[:12]]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
