"""Seconds that a device computes on one microbatch, layer by layer.

A layer is its products (`products`), its mixer (attention's kernel, a scan), and what only passes over
memory: norms, residual sums, activation functions, rotary positions, dropout, casts to 8 bits. The backward
pass is two products for each, passes twice as often over memory, and makes attention's scores once more.
What checkpointing dropped is computed again before it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from cupola.models import table
from cupola.models.table import Block, Parameter
from cupola.models.table.declaration import matrix_flops
from cupola.plan.activations import CHUNKS, kept
from cupola.plan.causes import Causes
from cupola.plan.execution import Loss
from cupola.plan.hardware import Hardware, Precision
from cupola.plan.layout import Layout
from cupola.plan.memory import Run
from cupola.plan.products import product, three
from cupola.plan.program import ATTENTION, Program
from cupola.recipe.model import Model

BACKWARD = 2.5
"""A fused attention kernel's backward pass over its forward one: five products, not two (Dao 2023)."""
SCORES = {False: 2.0, True: 4.5}
"""Passes over plain attention's scores outside its products: fused scaling and softmax; with dropout."""
LOGITS: dict[Loss, float] = {
    "eager": 40,
    "vocabulary_parallel": 56,
    "in_place": 50,
    "compiled": 12,
    "chunked": 30,
}
"""Bytes that pass for each logit, forward and backward, by what makes the loss (`execution.LOGITS`)."""
KERNELS, KERNELS_COMPILED = 30, 14
"""Of a layer's forward pass, without its collectives; its backward pass has twice as many."""
KERNELS_EXPERTS, KERNELS_EXPERT, KERNELS_CASTS = 60, 3, 6
"""Of routing and moving tokens; of each expert that a device has, whose products libraries launch apart; and
of the casts of these to 8 bits."""


ATTENDING = ("attention", "sliding_attention")
"""Mixers that see other tokens by their scores."""


@functools.lru_cache(maxsize=64)
def blocks(model: Model) -> tuple[Block, ...]:
    """`table.blocks`, remembered."""
    return tuple(table.blocks(model))


@functools.lru_cache(maxsize=256)
def _matrices(model: Model, layer: int, block: Block) -> tuple[Parameter, ...]:
    """Of a layer, in their order."""
    found = list(table.MIXERS[block.mixer].parameters(model, layer))
    if block.feedforward is not None:
        found += table.FEEDFORWARDS[block.feedforward].parameters(model, layer)
    return tuple(p for p in found if p.role in ("matrix", "low_rank"))


@dataclass(frozen=True)
class Pass:
    """What one microbatch costs a device on its way through something.

    Attributes:
        products, attention, streamed: seconds; attention also stands for scans.
        kernels: how many are launched.
    """

    products: float = 0.0
    attention: float = 0.0
    streamed: float = 0.0
    kernels: float = 0.0

    def plus(self, other: "Pass") -> "Pass":
        """Both."""
        return Pass(
            self.products + other.products,
            self.attention + other.attention,
            self.streamed + other.streamed,
            self.kernels + other.kernels,
        )

    def times(self, number: float) -> "Pass":
        """It so many times."""
        return Pass(
            number * self.products, number * self.attention, number * self.streamed, number * self.kernels
        )

    def busy(self, causes: Causes) -> float:
        """Seconds on the device."""
        return self.products + self.attention + self.streamed + self.kernels * causes.gap


@dataclass(frozen=True)
class Passes:
    """Of a layer, or of several.

    Attributes:
        again: what is computed a second time before the backward pass.
    """

    forward: Pass = Pass()
    again: Pass = Pass()
    backward: Pass = Pass()

    def plus(self, other: "Passes") -> "Passes":
        """Both."""
        return Passes(
            self.forward.plus(other.forward),
            self.again.plus(other.again),
            self.backward.plus(other.backward),
        )


@dataclass(frozen=True)
class Setting:
    """Where and how a run is computed."""

    run: Run
    hardware: Hardware
    program: Program
    causes: Causes

    @property
    def products(self) -> Precision:
        """Of the layers' products."""
        return cast(Precision, self.run.execution.precision)

    @property
    def exact(self) -> Precision:
        """Of the head and of attention, which are not computed in 8 bits."""
        return "bf16" if self.products in ("fp8", "fp4") else self.products

    def stream(self, size: float) -> float:
        """Seconds of passing over so many bytes."""
        return size / (self.hardware.bandwidth * self.causes.stream)


def layers(setting: Setting) -> list[Passes]:
    """Of every layer; layers alike are computed once."""
    model = setting.run.model
    found: dict[Block, Passes] = {}
    for layer, block in enumerate(blocks(model)):
        if block not in found:
            found[block] = _layer(setting, layer, block)
    return [found[block] for block in blocks(model)]


def _layer(setting: Setting, layer: int, block: Block) -> Passes:
    forward, backward = _products(setting, layer, block)
    core, core_back, scores = _core(setting, layer, block)
    # Plain scores pass over memory; they are dropped by checkpointing of attention alone.
    moved = setting.stream(_moved(setting, layer, block) * setting.run.tokens)
    casts = setting.stream(_casts(setting, layer, block) * setting.run.tokens)
    kernels = _kernels(setting, block)
    ahead = Pass(forward, core, moved + casts + scores, kernels)
    back = Pass(backward, core_back, 2 * moved + casts + 2 * scores, 2 * kernels)
    mode = setting.run.layout.checkpointing
    again = Pass()
    if mode == "full":
        last = _products(setting, layer, block, last=True)[0] if setting.program.stops_early else 0.0
        again = replace(ahead, products=forward - last)
    elif mode == "operators":
        again = Pass(forward / 2, 0.0, moved + casts, kernels / 2)
    elif mode == "selective" and not setting.run.execution.kernels.flash:
        again = Pass(0.0, core, scores, kernels / 6)
    return Passes(ahead, again, back)


def _shape(parameter: Parameter, layout: Layout) -> tuple[float, float]:
    """Outputs and inputs that a device has of a matrix."""
    outputs, inputs = parameter.shape[-2:]
    if parameter.cut == "colwise":
        return outputs / layout.tensor, inputs
    return (outputs, inputs / layout.tensor) if parameter.cut == "rowwise" else (outputs, inputs)


def _products(setting: Setting, layer: int, block: Block, last: bool = False) -> tuple[float, float]:
    """Seconds of a layer's products, forward and backward; or of its last one alone."""
    layout, experts = setting.run.layout, setting.run.model.experts
    held = setting.run.by_layer[layer].whole
    trained = min(1.0, held.trained / held.weights)  # what is frozen has no gradient of its own
    forward = backward = 0.0
    for parameter in _matrices(setting.run.model, layer, block)[-1 if last else 0 :]:
        outputs, inputs = _shape(parameter, layout)
        rows, count = setting.run.tokens, 1.0
        if len(parameter.shape) == 3 and experts is not None:
            rows *= experts.active * layout.expert / experts.count
            count = experts.count / layout.expert
        own = three(rows, outputs, inputs, setting.hardware, setting.products, setting.causes, count)
        forward, backward = forward + own[0], backward + own[1] + trained * own[2]
    return forward, backward


def _core(setting: Setting, layer: int, block: Block) -> tuple[float, float, float]:
    """Seconds of a mixer beyond its matrices, forward and backward; of passing over plain scores, forward."""
    run = setting.run
    part = table.MIXERS[block.mixer]
    whole = part.forward_flops(run.model, layer, run.sequence_length, True)
    flops = (whole - matrix_flops(part.parameters(run.model, layer))) * run.tokens / run.layout.tensor
    if block.mixer in ATTENDING:
        if not run.execution.kernels.flash:
            return _plain_attention(setting)
        forward = flops / attention_rate(setting)
        return forward, BACKWARD * forward, 0.0
    forward = _scan(setting, layer, block, flops)
    return forward, 3 * forward, 0.0


def attention_rate(setting: Setting) -> float:
    """FLOP/s of a fused kernel, counted over the causal half."""
    hardware = setting.hardware
    share = 0.4
    for kernel in ATTENTION[: ATTENTION.index(setting.program.attention) + 1]:
        share = hardware.attention.get(kernel, share)
    width = min(setting.run.model.sizes().head_width, 128)
    return hardware.flops(setting.exact) * share * (width / 128) ** setting.causes.narrow


def _plain_attention(setting: Setting) -> tuple[float, float, float]:
    """Two products of all scores, none left out by the mask, and softmax between them."""
    run, model = setting.run, setting.run.model
    sizes, length = model.sizes(), run.sequence_length
    count = run.layout.rows * sizes.heads / run.layout.tensor
    queries = length / run.layout.context
    make = functools.partial(
        product, hardware=setting.hardware, precision=setting.exact, causes=setting.causes, count=count
    )
    forward = make(queries, length, sizes.head_width) + make(queries, sizes.head_width, length)
    passes = SCORES[run.execution.kernels.dropout]
    moved = passes * run.execution.element * count * queries * length
    return forward, 2 * forward, setting.stream(moved)


def _scan(setting: Setting, layer: int, block: Block, flops: float) -> float:
    """A recurrence in chunks, forward: its products, or the memory that its inputs and outputs take.

    Within a chunk of Q tokens each sees half of the others, as in attention; Mamba's scan is no product, and
    runs on the cores for plain arithmetic."""
    run, hardware = setting.run, setting.hardware
    moved = sum(one.on(run.layout, True) for one in kept(run.model, layer, 1, run.execution.kernels)[0])
    bound = setting.stream(1.5 * moved * run.tokens)
    if block.mixer == "mamba":
        return max(bound, flops / (hardware.flops("fp32") * setting.causes.scan * 2))
    chunk = CHUNKS[block.mixer]
    width = run.model.mamba2.state if block.mixer == "mamba2" else run.model.rwkv7.head_width
    chunked = flops * (1 + chunk / width / 2)
    return max(bound, chunked / (hardware.flops(setting.exact) * setting.causes.scan))


def _moved(setting: Setting, layer: int, block: Block) -> float:
    """Bytes that a token's forward pass through a layer reads and writes outside of products."""
    run, model = setting.run, setting.run.model
    layout, element = run.layout, run.execution.element
    stream = element * model.width / (layout.tensor if layout.sequence_parallel else 1)
    parts = 1 if block.feedforward is None else 2
    found = parts * 4 * stream
    if run.execution.kernels.dropout:
        found += parts * 3 * stream
    sizes = model.sizes()
    heads = element * (sizes.heads + sizes.key_value_heads) * sizes.head_width / layout.tensor
    if block.mixer in ATTENDING:
        found += 2 * heads * ((model.positions == "rope") + model.qk_norm)
    hidden = element * sizes.feedforward / layout.tensor
    if block.feedforward == "experts" and model.experts is not None:
        experts = model.experts
        found += 3 * element * (experts.active * experts.width + experts.shared) / layout.tensor
        found += 4 * element * experts.active * model.width
    elif block.feedforward is not None:
        found += (3 if block.feedforward == "gated" else 2) * hidden
    return found * setting.program.passes


def _casts(setting: Setting, layer: int, block: Block) -> float:
    """Bytes for each token that go by to make the factors of 8-bit products from 16-bit tensors: read, and
    written as they are and transposed."""
    if setting.products not in ("fp8", "fp4"):
        return 0.0
    experts = setting.run.model.experts
    found = 0.0
    for parameter in _matrices(setting.run.model, layer, block):
        outputs, inputs = _shape(parameter, setting.run.layout)
        active = experts.active if len(parameter.shape) == 3 and experts is not None else 1
        found += active * (outputs if parameter.cut == "colwise" else inputs)
    return 4.0 * found


def _kernels(setting: Setting, block: Block) -> float:
    found: float = KERNELS_COMPILED if setting.program.compiled else KERNELS
    if block.feedforward == "experts" and (experts := setting.run.model.experts) is not None:
        each = KERNELS_EXPERT + (KERNELS_CASTS if setting.products in ("fp8", "fp4") else 0)
        found += KERNELS_EXPERTS + each * experts.count / setting.run.layout.expert
    return found


def head(setting: Setting) -> Passes:
    """The logits and the loss, on a rank of the last stage."""
    run = setting.run
    rows = run.vocabulary / run.layout.tensor
    own = three(run.tokens, rows, run.model.width, setting.hardware, setting.exact, setting.causes)
    moved = setting.stream(LOGITS[run.execution.loss] * rows * run.tokens)
    return Passes(
        forward=Pass(own[0], 0.0, moved / 2, 10), backward=Pass(own[1] + own[2], 0.0, moved / 2, 10)
    )


def embedding(setting: Setting) -> Passes:
    """Rows looked up, and their gradients added, on a rank of the first stage."""
    run = setting.run
    moved = setting.stream(3.0 * run.execution.element * run.model.width * run.tokens)
    return Passes(forward=Pass(streamed=moved, kernels=3), backward=Pass(streamed=moved, kernels=3))


def total(passes: Sequence[Passes]) -> Passes:
    """Of several."""
    add: Callable[[Passes, Passes], Passes] = Passes.plus
    return functools.reduce(add, passes, Passes())
