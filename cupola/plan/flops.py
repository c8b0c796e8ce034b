"""Training FLOPs of a model under every convention that published figures follow, each by its name.

They differ by up to a sixth for one and the same step, so a figure is worth nothing without its convention.
A multiplication and an addition are two FLOPs everywhere, and the backward pass is twice the forward one.

What the conventions make of what their authors didn't have in mind:

- **Mixtures** count the experts that a token is routed to, and the shared one. Megatron's and
  Megatron-Bridge's scripts leave the router out; `6nd`, `palm` and `exact` don't.
- **Grouped queries, gated feed-forward layers, heads wider than width / heads** count by the matrices that
  are there. For attention with as many key/value heads as heads, a plain feed-forward layer of 4 times the
  width and no mixture, `megatron` and `megatron_recompute` are the closed forms as printed.
- **Sliding windows** count as such in `exact`, `exact_full` and `bridge`; the others take every attention
  layer for a full one, as their formulas do.
- **Mamba, Mamba-2 and RWKV-7** count their matrices (`6nd` and `palm`: all their parameters) and, except in
  `6nd`, the recurrence as `models.table` has it: 5 FLOPs a token, forward, for each number of state (Mamba
  and Mamba-2), 9 for RWKV-7. In the three of Megatron's family Mamba-2 has 7 and no convolution, as in
  Megatron's own formula for hybrids.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from cupola.models import table
from cupola.models.table import Block, Parameter
from cupola.models.table.declaration import matrix_flops
from cupola.recipe.model import Model

Name = Literal["6nd", "palm", "bridge", "megatron", "megatron_recompute", "exact", "exact_full"]
"""The conventions; the order is that in which tables show them."""

MEGATRON_SCAN = 7.0
"""FLOPs for each number of state and token, forward, that Megatron-LM counts for Mamba-2."""


@dataclass(frozen=True)
class Convention:
    """A way to count.

    Attributes:
        definition: one line; B rows of s tokens, L layers of width h, V rows of vocabulary, N parameters.
        source: who counts so.
        per_token: (model, rows of vocabulary, sequence length) -> FLOPs of training on one token.
        hardware: what is recomputed is counted too, so the figure is compared with "hardware" utilisations.
    """

    definition: str
    source: str
    per_token: Callable[[Model, int, int], float]
    hardware: bool = False


@dataclass(frozen=True)
class Work:
    """FLOPs of the forward pass of one token.

    Attributes:
        matrices: of the blocks, without what the fields below have.
        router: the matrices that choose experts.
        convolution: the short ones before a state-space layer.
        mixing: attention's two products, or the recurrence of a state.
        head: the logits.
    """

    matrices: float
    router: float
    convolution: float
    mixing: float
    head: float


def work(model: Model, vocabulary: int, sequence_length: int, causal: bool, windows: bool = True) -> Work:
    """What the forward pass of one token is made of.

    Args:
        vocabulary: rows of the head.
        causal: half of attention's scores, as the mask leaves them.
        windows: sliding attention sees its window only; else all of the row.
    """
    matrices = router = convolution = mixing = 0.0
    for layer, block in enumerate(table.blocks(model)):
        mixer = "attention" if block.mixer == "sliding_attention" and not windows else block.mixer
        part = table.MIXERS[mixer]
        declared = part.parameters(model, layer)
        own, short = matrix_flops(declared), _size_flops(declared, "convolution.weight")
        matrices, convolution = matrices + own, convolution + short
        mixing += part.forward_flops(model, layer, sequence_length, causal) - own - short
        feedforward, routing = _feedforward(model, block, layer, sequence_length)
        matrices, router = matrices + feedforward, router + routing
    return Work(matrices, router, convolution, mixing, 2.0 * vocabulary * model.width)


def _feedforward(model: Model, block: Block, layer: int, sequence_length: int) -> tuple[float, float]:
    """Matrices that one token meets, and the router's."""
    if block.feedforward is None:
        return 0.0, 0.0
    part = table.FEEDFORWARDS[block.feedforward]
    routing = _size_flops(part.parameters(model, layer), "router.weight")
    return part.forward_flops(model, layer, sequence_length, True) - routing, routing


def _size_flops(declared: Iterable[Parameter], ending: str) -> float:
    return 2.0 * sum(p.size for p in declared if p.name.endswith(ending))


def _six_nd(model: Model, vocabulary: int, sequence_length: int) -> float:
    return 6.0 * table.active_count(model, vocabulary)


def _palm(model: Model, vocabulary: int, sequence_length: int) -> float:
    # A convolution's weights are parameters, and so are counted by 6 N.
    mixing = work(model, vocabulary, sequence_length, causal=False, windows=False).mixing
    return _six_nd(model, vocabulary, sequence_length) + 3.0 * mixing


def _megatron_layers(model: Model, counted: Work) -> float:
    """The layers' forward pass as Megatron's scripts count it."""
    scans = 0.0
    if (number := model.mixers().count("mamba2")) > 0:
        settings = model.mamba2
        states = settings.heads(model.width) * settings.head_width * settings.state
        scans = number * (MEGATRON_SCAN - 5.0) * states
        scans -= counted.convolution - _mamba_convolution(model)
    return counted.matrices + counted.mixing + counted.convolution + scans


def _mamba_convolution(model: Model) -> float:
    """Those of the first Mamba, which Megatron has no formula for."""
    inner = model.mamba.expansion * model.width
    return 2.0 * model.mixers().count("mamba") * inner * model.mamba.convolution


def _bridge(model: Model, vocabulary: int, sequence_length: int) -> float:
    counted = work(model, vocabulary, sequence_length, causal=True)
    return 3.0 * (_megatron_layers(model, counted) + counted.head)


def _megatron(model: Model, vocabulary: int, sequence_length: int) -> float:
    counted = work(model, vocabulary, sequence_length, causal=False, windows=False)
    return 3.0 * (_megatron_layers(model, counted) + counted.head)


def _megatron_recompute(model: Model, vocabulary: int, sequence_length: int) -> float:
    counted = work(model, vocabulary, sequence_length, causal=False, windows=False)
    return 4.0 * _megatron_layers(model, counted) + 3.0 * counted.head


@functools.lru_cache(maxsize=64)
def _exact(model: Model, vocabulary: int, sequence_length: int) -> float:
    return table.flops_per_token(model, vocabulary, sequence_length)


@functools.lru_cache(maxsize=64)
def _exact_full(model: Model, vocabulary: int, sequence_length: int) -> float:
    return table.flops_per_token(model, vocabulary, sequence_length, causal=False)


CONVENTIONS: dict[Name, Convention] = {
    "6nd": Convention(
        "6 N, N all parameters that a token meets, embeddings included; attention's products not",
        "Kaplan et al. 2020; totals of GPT-3, Chinchilla, PaLM, Llama 3 and OLMo",
        _six_nd,
    ),
    "palm": Convention(
        "6 N + 12 L heads head_width s, N as in 6nd; attention without its mask",
        "Chowdhery et al. 2022 (PaLM), appendix B; llm-foundry's tables",
        _palm,
    ),
    "bridge": Convention(
        "6 for each element of the matrices that a token meets (logits included, router and biases not) "
        "+ 6 L heads head_width s, the causal half",
        "Megatron-Bridge, training/utils/flop_utils.py; its performance tables",
        _bridge,
    ),
    "megatron": Convention(
        "72 B s L h^2 (1 + s/6h + V/12Lh), by the actual matrices; attention without its mask",
        "Narayanan et al. 2021, appendix, less what is recomputed; Megatron-LM's H100 table, nanotron",
        _megatron,
    ),
    "megatron_recompute": Convention(
        "96 B s L h^2 (1 + s/6h + V/16Lh): the layers' forward pass a second time",
        "Narayanan et al. 2021, appendix; Megatron 2021, MT-NLG, OPT and BLOOM",
        _megatron_recompute,
        hardware=True,
    ),
    "exact": Convention(
        "6 for each element of every matrix that a token meets, and what mixers do beyond, as masks leave it",
        "cupola.models.table.flops_per_token; checked against torch's counter",
        _exact,
    ),
    "exact_full": Convention(
        "as exact, attention without its causal mask",
        "cupola.models.table.flops_per_token(causal=False)",
        _exact_full,
    ),
}
"""By name; `tests/plan/test_flops.py` holds the closed forms."""
assert tuple(CONVENTIONS) == get_args(Name)


def per_token(model: Model, vocabulary: int, sequence_length: int, convention: Name = "exact") -> float:
    """FLOPs of training on one token, forward and backward.

    Args:
        vocabulary: rows of embedding and head (`model.rows(tokenizer.size)`).
        convention: a key of `CONVENTIONS`.
    """
    return CONVENTIONS[convention].per_token(model, vocabulary, sequence_length)


def by_convention(model: Model, vocabulary: int, sequence_length: int) -> dict[Name, float]:
    """`per_token` under each convention."""
    return {name: one.per_token(model, vocabulary, sequence_length) for name, one in CONVENTIONS.items()}


def per_step(
    model: Model, vocabulary: int, sequence_length: int, batch: int, convention: Name = "exact"
) -> float:
    """FLOPs of one step on `batch` rows of that length."""
    return per_token(model, vocabulary, sequence_length, convention) * sequence_length * batch
