"""What a layer keeps of one token for its backward pass, tensor by tensor.

For a Transformer with LayerNorm, GELU, as many key/value heads as heads, dropout and attention as plain
products, the sums are the formulas of Korthikanti et al. 2022 (arXiv:2205.05198), table 2, without a
remainder: s b h (34 + 5 a s / h) bytes a layer, 10 of the 34 not cut by tensor parallelism alone. The
rest is the same bookkeeping for other layers: a matrix keeps its input, a product both factors, a norm its
input, softmax its output; what a fused kernel makes anew is left out.

- Attention with flash kernels keeps queries, keys, values, its output and one fp32 number for each head.
- A gated feed-forward layer keeps gate, up and their product; without fused kernels also silu(gate).
- Experts keep what a token's active experts keep, its copies for them, and what they return. Loads are even.
- A scan (Mamba, Mamba-2) keeps its inputs and its output, and states at the borders of `CHUNKS`; RWKV-7's
  delta rule also its rates. What kernels keep differs with their version: an estimate.

Published rows check it (`bench.planner`): Korthikanti's to the last digit, and the peaks of torchtitan and
nanotron, which hold the rest, within 6% at the median.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cupola.models import table
from cupola.models.table import Block
from cupola.plan.layout import Checkpointing, Layout
from cupola.recipe.model import Model

FP32, MASK = 4, 1
CHUNKS = {"mamba": 2048, "mamba2": 256, "rwkv7": 16}
"""Tokens from one kept state to the next, in the published kernels."""

Kind = Literal["plain", "input", "gathered", "core", "core_output"]


@dataclass(frozen=True)
class Kept:
    """A tensor that a layer keeps.

    Attributes:
        size: bytes for each token.
        cut: tensor parallelism cuts it; else only sequence parallelism does.
        kind: input: of the whole layer. gathered: also the input of matrices that are cut by outputs, which
            lies whole on every worker unless it is gathered once more. core: inside attention or a scan.
            core_output: what these return.
    """

    name: str
    size: float
    cut: bool = False
    kind: Kind = "plain"

    def on(self, layout: Layout, regather: bool) -> float:
        """Bytes for each token on one device."""
        whole = self.kind == "gathered" and not regather
        return (
            self.size / layout.tensor if self.cut or (layout.sequence_parallel and not whole) else self.size
        )


@dataclass(frozen=True)
class Kernels:
    """How layers are computed, as far as it changes what they keep.

    Attributes:
        element: bytes of an activation: 2, or 4 in fp32.
        flash: attention never holds its scores.
        grouped: attention takes fewer key/value heads as they are; else they are repeated for each head.
        fused: activation functions and products are one kernel, which keeps its inputs alone.
        dropout: after attention's scores, attention and the feed-forward layer.
        regather: with sequence parallelism, inputs of cut matrices are gathered again in the backward pass
            (Megatron-LM), not kept whole.
    """

    element: int = 2
    flash: bool = True
    grouped: bool = True
    fused: bool = True
    dropout: bool = False
    regather: bool = True


def kept(model: Model, layer: int, context: int, kernels: Kernels) -> list[list[Kept]]:
    """What a layer keeps without checkpointing, part by part (mixer, feed-forward layer).

    Args:
        context: tokens that attention sees; of a whole row, however it is cut.
    """
    block = table.blocks(model)[layer]
    mixer = _MIXERS[block.mixer](model, context, kernels)
    parts = [[*_entrance(model, kernels, first=True), *mixer]]
    if block.feedforward is not None:
        parts.append([*_entrance(model, kernels, first=False), *_feedforward(model, block, kernels)])
    return parts


def per_token(
    model: Model, layer: int, context: int, kernels: Kernels, layout: Layout
) -> tuple[float, float, float]:
    """Bytes for each token of one layer on one device: what it keeps; what its backward pass brings back of
    itself; the gradients that this then holds at once (of one part, each as large as what it is of)."""
    parts = kept(model, layer, context, kernels)
    sums = [sum(one.on(layout, kernels.regather) for one in part) for part in parts]
    everything = sum(sums)
    rest = sum(one.on(layout, kernels.regather) for one in _after(model, layer, parts, layout, kernels))
    return rest, max(0.0, everything - rest), max(sums)


def _after(model: Model, layer: int, parts: list[list[Kept]], layout: Layout, kernels: Kernels) -> list[Kept]:
    """What checkpointing leaves."""
    mode: Checkpointing = layout.checkpointing
    everything = [one for part in parts for one in part]
    if mode == "none":
        return everything
    if mode == "selective":
        return [one for one in everything if one.kind != "core"]
    found = [one for one in everything if one.kind == "input"]
    if mode == "operators":
        found += [one for one in everything if one.kind == "core_output"]
        found += [one for number, one in enumerate(_products(model, layer, kernels)) if number % 2 == 0]
    return found


def _products(model: Model, layer: int, kernels: Kernels) -> Iterator[Kept]:
    """The outputs of a layer's matrices, in their order. A sum over workers is kept as it is before it."""
    block = table.blocks(model)[layer]
    parts = [table.MIXERS[block.mixer]]
    if block.feedforward is not None:
        parts.append(table.FEEDFORWARDS[block.feedforward])
    for part in parts:
        for parameter in part.parameters(model, layer):
            if parameter.role in ("matrix", "low_rank"):
                active = model.experts.active if len(parameter.shape) == 3 and model.experts else 1
                size = kernels.element * active * parameter.shape[-2]
                yield Kept(parameter.name, size, cut=parameter.cut == "colwise")


def _entrance(model: Model, kernels: Kernels, first: bool) -> list[Kept]:
    """The residual stream, which the norm keeps; its output; where there is dropout, the mask at the end."""
    size = kernels.element * model.width
    found = [
        Kept("residual", size, kind="input" if first else "plain"),
        Kept("normed", size, kind="gathered"),
    ]
    return [*found, Kept("mask", MASK * model.width)] if kernels.dropout else found


def key_bytes(model: Model, kernels: Kernels) -> float:
    """Of one token's keys as attention takes them; its values are as many."""
    sizes = model.sizes()
    heads = sizes.key_value_heads if kernels.grouped else sizes.heads
    return kernels.element * heads * sizes.head_width


def _attention(model: Model, context: int, kernels: Kernels) -> list[Kept]:
    sizes, element = model.sizes(), kernels.element
    queries, keys = element * sizes.heads * sizes.head_width, key_bytes(model, kernels)
    found = [Kept("queries", queries, True), Kept("keys", keys, True), Kept("values", keys, True)]
    if model.qk_norm:
        found += [Kept("unnormed queries", queries, True), Kept("unnormed keys", keys, True)]
    if kernels.flash:
        found.append(Kept("log-sums", FP32 * sizes.heads, True, "core"))
    else:
        scores = sizes.heads * context
        found.append(Kept("softmax", element * scores, True, "core"))
        if kernels.dropout:
            found += [Kept("dropped", element * scores, True, "core")]
            found += [Kept("scores' mask", MASK * scores, True, "core")]
    return [*found, Kept("attended", queries, True, "core_output")]


def _mamba(model: Model, context: int, kernels: Kernels) -> list[Kept]:
    settings, element = model.mamba, kernels.element
    inner, rank = settings.expansion * model.width, settings.rank(model.width)
    return [
        Kept("gate and input", element * 2 * inner, True),
        Kept("convolved", element * inner, True),
        Kept("steps' rank, b and c", element * (rank + 2 * settings.state)),
        Kept("steps", element * inner, True, "core"),
        Kept("states", FP32 * inner * settings.state / CHUNKS["mamba"], True, "core"),
        Kept("scanned", element * inner, True, "core_output"),
        Kept("gated", element * inner, True),
    ]


def _mamba2(model: Model, context: int, kernels: Kernels) -> list[Kept]:
    settings, element = model.mamba2, kernels.element
    heads, shared = settings.heads(model.width), settings.groups * settings.state
    inner = heads * settings.head_width
    return [
        Kept("gate", element * inner, True),
        Kept("input and convolved", element * 2 * inner, True),
        Kept("b and c, raw and convolved", element * 4 * shared, settings.groups > 1),
        Kept("steps, raw and positive", 2 * FP32 * heads, True),
        Kept("states", FP32 * inner * settings.state / CHUNKS["mamba2"], True, "core"),
        Kept("scanned", element * inner, True, "core_output"),
        Kept("normed inside", element * inner, True),
    ]


def _rwkv7(model: Model, context: int, kernels: Kernels) -> list[Kept]:
    width = kernels.element * model.width
    ranks = model.rwkv7.ranks(model.width)
    low = ranks.decay + ranks.rate + ranks.value + ranks.gate
    return [
        Kept("mixed with the token before", 6 * width, kind="gathered"),
        Kept("low ranks", kernels.element * low),
        Kept("receptance, key and value", 3 * width, True),
        Kept("decay, rate, gate and mix", 4 * width, True),
        Kept("key, rate and value as the rule takes them", 4 * width, True),
        Kept("states", FP32 * model.width * model.rwkv7.head_width / CHUNKS["rwkv7"], True, "core"),
        Kept("rule's products", FP32 * model.width, True, "core"),
        Kept("read", width, True, "core_output"),
        Kept("normed and gated", 2 * width, True),
    ]


_MIXERS = {
    "attention": _attention,
    "sliding_attention": _attention,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "rwkv7": _rwkv7,
}


def _feedforward(model: Model, block: Block, kernels: Kernels) -> list[Kept]:
    if block.feedforward == "experts":
        return _mixture(model, kernels)
    hidden = kernels.element * model.sizes().feedforward
    if block.feedforward == "gated":
        return _gated(hidden, kernels)
    found = [Kept("up", hidden, True), Kept("activated", hidden, True)]
    if block.feedforward == "channel_mix":
        mixed = kernels.element * model.width
        return [Kept("mixed with the token before", mixed, kind="gathered"), *found]
    return found


def _gated(hidden: float, kernels: Kernels) -> list[Kept]:
    found = [Kept("gate", hidden, True), Kept("up", hidden, True), Kept("product", hidden, True)]
    return found if kernels.fused else [*found, Kept("silu(gate)", hidden, True)]


def _mixture(model: Model, kernels: Kernels) -> list[Kept]:
    settings, element = model.experts, kernels.element
    assert settings is not None
    copies = element * settings.active * model.width
    found = [Kept("router", 2 * FP32 * settings.count)]
    found += [Kept("tokens of experts", copies), Kept("answers of experts", copies)]
    found += _gated(element * settings.active * settings.width, kernels)
    return found + (_gated(element * settings.shared, kernels) if settings.shared else [])
