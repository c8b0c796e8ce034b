"""Seconds that an optimizer step takes on a layout, and what they go to.

A pipeline rank passes a microbatch forward and backward: it computes (`compute`), and waits for what it
exchanges and can't hide (`communication`). The slowest rank sets the pace; filling and draining the
pipeline comes once. Then gradients of data-parallel workers are summed, as far as that wasn't hidden, and
the optimizer steps (`update`):

    step = m x slowest + bubble + exposed gradients + optimizer + pause,  x the wait for the slowest device

with m microbatches. The bubble of 1f1b and gpipe is the time of one microbatch on all other ranks, that of
interleaved a v-th of it with v chunks, that of zb-h1 a third; zb-h2 and zb-v have none (Narayanan et al.
2021, Qi et al. 2023 and 2024). The parts are those of the slowest rank.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cupola.plan import communication, compute, flops, update
from cupola.plan.activations import key_bytes
from cupola.plan.causes import CAUSES, Causes
from cupola.plan.compute import Pass, Passes, Setting
from cupola.plan.figure import Figure
from cupola.plan.hardware import Hardware
from cupola.plan.memory import Run
from cupola.plan.program import OURS, Program
from cupola.plan.standing import Group
from cupola.recipe.model import Model

GUESSED = (0.2, 2.0)
"""The same on a CPU that was not measured: cores differ by as much."""
SPREAD, SPREAD_EXPERTS = (0.8, 1.25), (0.7, 1.65)
"""Between what multiples of a prediction 90% of steps lie; of mixtures of experts. By constants fitted
without a row's own system 90% of published steps lie between 0.86 and 1.21, and 0.78 and 1.61
(`bench.planner --cross-validate`). These are wider: what those programs do was known by their own rows too.
"""
BUBBLES = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 1.0, "zb-h1": 1 / 3, "zb-h2": 0.0, "zb-v": 0.0}
"""Of the time of a microbatch on the other ranks, what filling and draining leaves idle."""
PARTS = (
    "products",
    "attention",
    "memory-bound",
    "recomputed",
    "launches",
    "tensor parallel",
    "context parallel",
    "expert parallel",
    "shards gathered",
    "pipeline sends",
    "pipeline bubble",
    "gradients summed",
    "optimizer",
    "pauses",
    "waiting for the slowest",
)
"""What a step goes to, in the order in which it is shown."""


@dataclass(frozen=True)
class StepTime:
    """Of one step of a run on its layout.

    Attributes:
        seconds: of the step, with its 90% interval.
        parts: seconds of the slowest rank's devices by what they go to, of `PARTS`; they add up to
            `seconds.value`.
        flops: of the model for the whole step (no recomputation), convention `exact_full`.
        tokens: of the step.
        mfu: `flops` over what all devices could do in that time.
        microbatches: of the step.
        ranks: seconds of a microbatch forward and backward on each pipeline rank, without what waits for the
            slowest device.
    """

    seconds: Figure
    parts: Mapping[str, float]
    flops: float
    tokens: int
    mfu: float
    microbatches: int = 1
    ranks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Rank:
    """One pipeline rank's share of a microbatch, in seconds.

    Attributes:
        forward, backward: what it takes in each direction, everything counted.
        parts: the same, by what it goes to.
    """

    forward: float
    backward: float
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Both ways."""
        return self.forward + self.backward


def step_time(run: Run, hardware: Hardware, program: Program = OURS, causes: Causes = CAUSES) -> StepTime:
    """Of a run whose batch is stated; else of one with twice as many microbatches as pipeline ranks."""
    setting = Setting(run, hardware, program, causes)
    by_layer = compute.layers(setting)
    known: dict[tuple[object, ...], Rank] = {}
    ranks = []
    for number, stages in enumerate(run.ranks):  # ranks alike are computed once
        ends = any(stage.first for stage in stages), any(stage.last for stage in stages)
        key = (*ends, *sorted(run.kinds(stages).items()))
        if key not in known:
            known[key] = _rank(setting, number, by_layer)
        ranks.append(known[key])
    number = max(range(len(ranks)), key=lambda one: ranks[one].seconds)
    slowest, count = ranks[number], run.microbatches
    parts = dict.fromkeys(PARTS, 0.0)
    for name, seconds in slowest.parts.items():
        parts[name] += count * seconds
    others = sum(rank.seconds for rank in ranks) - slowest.seconds
    layout = run.layout
    parts["pipeline bubble"] = BUBBLES[layout.schedule] * others / layout.chunks
    group = run.group(run.ranks[number])
    parts["gradients summed"] = _summed(setting, group, slowest)
    parts["optimizer"] = update.update(setting, group)
    parts["pauses"] = causes.pause
    whole = sum(parts.values())
    parts["waiting for the slowest"] = whole * causes.jitter * math.sqrt(2 * math.log(layout.devices))
    return _step(run, hardware, parts, tuple((rank.forward, rank.backward) for rank in ranks))


def _step(
    run: Run, hardware: Hardware, parts: dict[str, float], ranks: tuple[tuple[float, float], ...]
) -> StepTime:
    tokens = run.microbatches * run.layout.data * run.layout.rows * run.sequence_length
    per_token = _flops(run.model, run.vocabulary, run.sequence_length)
    seconds = sum(parts.values())
    peak = hardware.flops(run.execution.precision) * run.layout.devices
    low, high = SPREAD if run.model.experts is None else SPREAD_EXPERTS
    low, high = GUESSED if hardware.guessed else (low, high)
    figure = Figure(seconds, low * seconds, high * seconds)
    operations = per_token * tokens
    return StepTime(figure, parts, operations, tokens, operations / peak / seconds, run.microbatches, ranks)


@functools.lru_cache(maxsize=64)
def _flops(model: Model, vocabulary: int, length: int) -> float:
    """Of a token; a search asks for it again and again."""
    return flops.per_token(model, vocabulary, length, "exact_full")


def _rank(setting: Setting, number: int, by_layer: list[Passes]) -> Rank:
    """What a microbatch costs a rank."""
    run, causes = setting.run, setting.causes
    stages = run.ranks[number]
    own = [layer for stage in stages for layer in stage.layers]
    inner = compute.total([by_layer[layer] for layer in own])
    passes = inner
    if any(stage.first for stage in stages):
        passes = passes.plus(compute.embedding(setting))
    if any(stage.last for stage in stages):
        passes = passes.plus(compute.head(setting))
    group = run.group(run.ranks[number])
    exchanged = [_exchanged(setting, own, back) for back in (False, True)]
    forward = passes.forward.times(1 + run.references)  # a reference model passes forward alone
    ways = [forward, passes.again.plus(passes.backward)]
    parts: dict[str, float] = {}
    seconds = []
    for back, (way, waits) in enumerate(zip(ways, exchanged, strict=True)):
        spent = waits | {"pipeline sends": _sent(setting)}
        spent |= _by_kind(passes.backward if back else forward, causes)
        if back:
            spent["recomputed"] = passes.again.busy(causes)
            spent["memory-bound"] += _accumulated(setting, group)
        device = sum(spent.values())
        spent["shards gathered"] = _gathered(setting, group, device, bool(back))
        spent["launches"] += _starved(setting, way, device)
        spent["launches"] += setting.program.host / 2
        seconds.append(sum(spent.values()))
        for name, value in spent.items():
            parts[name] = parts.get(name, 0.0) + value
    return Rank(seconds[0], seconds[1], parts)


def _by_kind(way: Pass, causes: Causes) -> dict[str, float]:
    return {
        "products": way.products,
        "attention": way.attention,
        "memory-bound": way.streamed,
        "launches": way.kernels * causes.gap,
    }


def _starved(setting: Setting, way: Pass, device: float) -> float:
    """Seconds that a device waits for the host, which takes longer to launch kernels than they to run."""
    if setting.program.graphs:
        return 0.0
    return max(0.0, way.kernels * setting.causes.launch - device)


def _exchanged(setting: Setting, own: list[int], back: bool) -> dict[str, float]:
    """Seconds of one direction through a rank's layers in which it waits for others."""
    run, program = setting.run, setting.program
    layout, hardware, causes = run.layout, setting.hardware, setting.causes
    stream = run.execution.element * run.model.width * run.tokens
    blocks = compute.blocks(run.model)
    # Full checkpointing passes forward once more, with all that is exchanged.
    again = back and layout.checkpointing == "full"
    times = 2 if again else 1
    sums = sum(1 + (blocks[layer].feedforward is not None) for layer in own)
    spared = len(own) / 2 if again and program.stops_early else 0.0
    own_group = communication.tensor(layout, hardware, causes)
    one = own_group.reduce(stream)
    regathered = 0.5 if back and layout.sequence_parallel and run.execution.kernels.regather else 0.0
    tensor = (sums * (times + regathered) - spared) * one
    experts = sum(blocks[layer].feedforward == "experts" for layer in own)
    copies = run.model.experts.active if run.model.experts else 1
    owners = communication.expert(layout, hardware, causes)
    expert = 2 * experts * times * owners.exchange(stream * copies, copies, program.merges_copies)
    attending = sum(blocks[layer].mixer in compute.ATTENDING for layer in own)
    keys = 2 * key_bytes(run.model, run.execution.kernels) / layout.tensor
    ring = communication.context(layout, hardware, causes)
    context = attending * (times + back) * ring.gather(keys * layout.rows * run.sequence_length)
    return {
        "tensor parallel": _exposed(tensor, program.hides_tensor, causes),
        "context parallel": _exposed(context, program.hides_context, causes),
        "expert parallel": _exposed(expert, program.hides_experts, causes),
    }


def _exposed(seconds: float, hidden: float, causes: Causes) -> float:
    """What a collective costs of which a share is hidden."""
    return seconds * (1 - hidden * (1 - causes.interference))


def _sent(setting: Setting) -> float:
    """Seconds of one direction in which a rank waits for its neighbour's tensor to arrive."""
    run, layout = setting.run, setting.run.layout
    size = run.execution.element * run.model.width * run.tokens / layout.tensor
    chunks = layout.stage_count / layout.pipeline
    ranks = communication.pipeline(layout, setting.hardware, setting.causes)
    once = ranks.send(size) / (setting.program.sends if ranks.domains > 1 else 1.0)
    return _exposed(chunks * once, setting.program.hides_pipeline, setting.causes)


def _accumulated(setting: Setting, group: Group) -> float:
    """Seconds of adding a microbatch's gradients to those of others; they are whole until the step ends where
    parameters are."""
    run = setting.run
    if run.microbatches == 1:
        return 0.0
    cut = run.layout.shard >= 2 and not (run.layout.shard == 3 and run.gathers_once)
    held = group.sharded(run.layout) if cut else group.whole
    return setting.stream(2.0 * run.execution.gradients * held.trained)


def _gathered(setting: Setting, group: Group, device: float, back: bool) -> float:
    """Seconds that a microbatch waits in one direction for sharded parameters, and for gradients to leave.

    Sharding of parameters gathers them on both ways, layer by layer, unless all are gathered for the step."""
    run, layout = setting.run, setting.run.layout
    if not layout.sharded or layout.shard < 2 or (layout.shard == 3 and run.gathers_once):
        return 0.0
    found = [_leaving(setting, group)] if back else []
    found += [_arriving(setting, group)] if layout.shard == 3 else []
    whole, load = sum(one[0] for one in found), sum(one[1] for one in found)
    return _hidden(setting, whole, load, device)


def _hidden(setting: Setting, seconds: float, load: float, behind: float) -> float:
    """What a collective costs that runs beside so many seconds of computation, if the program does that."""
    hidden = setting.program.hides_shards * min(seconds, behind)
    return seconds - hidden + setting.causes.interference * min(hidden, load)


def _arriving(setting: Setting, group: Group) -> tuple[float, float]:
    """Of a rank's parameters, gathered."""
    own = setting.program.gathered
    size = setting.run.execution.element if own is None else own
    return _over_shards(setting, size * group.dense.weights, size * group.experts.weights)


def _leaving(setting: Setting, group: Group) -> tuple[float, float]:
    """Of a rank's gradients, summed and scattered."""
    own = setting.program.reduced
    size = setting.run.execution.gradients if own is None else own
    return _over_shards(setting, size * group.dense.trained, size * group.experts.trained)


def _over_shards(setting: Setting, dense_bytes: float, experts_bytes: float) -> tuple[float, float]:
    """Seconds to gather so many bytes of a rank, or to scatter their sum; and what that asks of a device
    (`communication.Group.load`)."""
    layout = setting.run.layout
    dense = communication.shards(layout, setting.hardware, setting.causes)
    if setting.program.one_card:
        dense = replace(dense, near=1)
    experts = communication.shards(layout, setting.hardware, setting.causes, experts=True)
    layers = max(1, setting.run.model.layers // layout.pipeline)
    hops = (layers - 1) * dense.hops if dense.ways > 1 and layout.shard == 3 else 0.0
    seconds = dense.gather(dense_bytes) + experts.gather(experts_bytes) + hops
    return seconds, dense.load(dense_bytes) + experts.load(experts_bytes)


def _summed(setting: Setting, group: Group, slowest: Rank) -> float:
    """Seconds once a step for gradients of data-parallel workers, and parameters that come back.

    What runs beside the last microbatch's backward pass, and the first one's forward pass, is hidden; without
    shards both belong to the sum of gradients, beside the backward pass."""
    layout = setting.run.layout
    if layout.shards == 1 or (layout.shard == 3 and not setting.run.gathers_once):
        return 0.0
    leaving = (0.0, 0.0) if layout.shard == 2 else _leaving(setting, group)
    arriving = _arriving(setting, group) if layout.shard else _leaving(setting, group)
    behind = slowest.backward if layout.shard else slowest.backward / 2
    before = slowest.forward if layout.shard else slowest.backward / 2
    return _hidden(setting, *leaving, behind) + _hidden(setting, *arriving, before)
