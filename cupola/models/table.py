"""What a model declares: every parameter's name, shape, role, tensor-parallel cut and initialisation.

A pure function of the recipe's `model:` block, without torch, so that the planner, the checks and the
layouts can ask before anything is built. `tests/models/test_table.py` holds it equal to the built module.

A model is a stack of blocks, each a mixer (attention) and a feed-forward layer. Both are looked up by
kind in `MIXERS` and `FEEDFORWARDS`: another kind adds a file with its own `Part` and one entry here, and
nothing below changes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cupola.recipe.schema import Model

Role = Literal["matrix", "embedding", "head", "vector"]
Cut = Literal["colwise", "rowwise", "vocabulary", "replicate", "replicate_by_head"]


@dataclass(frozen=True)
class Parameter:
    """One parameter as it is built.

    `cut` is how tensor parallelism shards it, in Megatron-LM's terms (Shoeybi et al. 2019); weights are
    (outputs, inputs) as in `torch.nn.Linear`:

    - colwise: by outputs, axis 0 (a bias likewise), in whole multiples of `unit` rows, so that heads stay
      together, and with grouped queries the whole group of a key/value head.
    - rowwise: by inputs, axis 1; the outputs are summed over the workers.
    - vocabulary: by rows of the vocabulary.
    - replicate: whole on every worker, which computes with it on the whole residual stream.
    - replicate_by_head: whole on every worker, but applied to that worker's heads only, so its gradient
      must be summed over the workers. Treated as plain `replicate` it trains wrong without an error.

    `draw` names its initial distribution, a key of `cupola.models.init.DRAWS`.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    cut: Cut
    draw: str = "normal"
    unit: int = 1

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Part:
    """What one kind of mixer or feed-forward layer declares; names are relative to the part."""

    parameters: Callable[[Model], list[Parameter]]
    forward_flops: Callable[[Model, int, bool], float]
    """(model, sequence length, causal) -> FLOPs of the forward pass per token, its matrices included."""


@dataclass(frozen=True)
class Block:
    """The kinds of one block: keys of `MIXERS` and `FEEDFORWARDS`."""

    mixer: str
    feedforward: str


def blocks(model: Model) -> list[Block]:
    """The stack, from the embedding to the head."""
    return [Block("attention", "gated" if model.activation == "swiglu" else "plain")] * model.layers


def parameters(model: Model, vocabulary: int) -> list[Parameter]:
    """Every parameter of the built module, in its order.

    A tied head is the embedding and stands here once, as `embedding.weight`.

    Args:
        vocabulary: rows of embedding and head (`model.rows(tokenizer.size)`).
    """
    width = model.width
    draw = "head" if model.tied else "normal"
    found = [Parameter("embedding.weight", (vocabulary, width), "embedding", "vocabulary", draw)]
    if model.positions == "learned":
        if model.max_positions is None:
            raise ValueError("learned positions need `max_positions`")
        shape = (model.max_positions, width)
        found.append(Parameter("positions.weight", shape, "embedding", "replicate"))
    for index, block in enumerate(blocks(model)):
        prefix = f"blocks.{index}"
        found += norm(model, f"{prefix}.mixer_norm")
        found += _inside(f"{prefix}.mixer", MIXERS[block.mixer].parameters(model))
        found += norm(model, f"{prefix}.feedforward_norm")
        found += _inside(f"{prefix}.feedforward", FEEDFORWARDS[block.feedforward].parameters(model))
    found += norm(model, "norm")
    if not model.tied:
        found.append(Parameter("head.weight", (vocabulary, width), "head", "vocabulary", "head"))
    return found


def _inside(prefix: str, part: list[Parameter]) -> list[Parameter]:
    return [replace(parameter, name=f"{prefix}.{parameter.name}") for parameter in part]


def norm(model: Model, name: str) -> list[Parameter]:
    """RMSNorm has a weight; LayerNorm a weight and a bias."""
    found = [Parameter(f"{name}.weight", (model.width,), "vector", "replicate", "one")]
    if model.norm == "layernorm":
        found.append(Parameter(f"{name}.bias", (model.width,), "vector", "replicate", "zero"))
    return found


def linear(
    name: str,
    outputs: int,
    inputs: int,
    cut: Literal["colwise", "rowwise"],
    bias: bool,
    draw: str = "normal",
    unit: int = 1,
) -> list[Parameter]:
    """The weight (outputs, inputs) of a linear map, and its bias where it has one."""
    found = [Parameter(f"{name}.weight", (outputs, inputs), "matrix", cut, draw, unit)]
    if bias:
        # A rowwise map adds its bias once, after the sum over the workers.
        bias_cut: Cut = "colwise" if cut == "colwise" else "replicate"
        bias_unit = unit if cut == "colwise" else 1
        found.append(Parameter(f"{name}.bias", (outputs,), "vector", bias_cut, "zero", bias_unit))
    return found


def _attention(model: Model) -> list[Parameter]:
    sizes = model.sizes()
    head, bias = sizes.head_width, model.attention_bias
    queries, keys = model.heads * head, sizes.key_value_heads * head
    group = model.heads // sizes.key_value_heads
    found = linear("query", queries, model.width, "colwise", bias, unit=group * head)
    found += linear("key", keys, model.width, "colwise", bias, unit=head)
    found += linear("value", keys, model.width, "colwise", bias, unit=head)
    if model.qk_norm:
        for name in ("query_norm.weight", "key_norm.weight"):
            found.append(Parameter(name, (head,), "vector", "replicate_by_head", "one"))
    return found + linear("output", model.width, queries, "rowwise", model.output_bias, draw="residual")


def _attention_flops(model: Model, sequence_length: int, causal: bool) -> float:
    scores = 2 * 2 * model.heads * model.sizes().head_width * sequence_length
    return matrix_flops(_attention(model)) + (scores / 2 if causal else scores)


def _feedforward(model: Model, gated: bool) -> list[Parameter]:
    hidden, bias = model.sizes().feedforward, model.feedforward_bias
    found = linear("gate", hidden, model.width, "colwise", bias) if gated else []
    found += linear("up", hidden, model.width, "colwise", bias)
    return found + linear("down", model.width, hidden, "rowwise", bias, draw="residual")


def matrix_flops(part: list[Parameter]) -> float:
    """2 FLOPs per element of each matrix, per token, forward."""
    return 2.0 * sum(p.size for p in part if p.role == "matrix")


def _dense(parameters: Callable[[Model], list[Parameter]]) -> Part:
    return Part(parameters, lambda model, sequence_length, causal: matrix_flops(parameters(model)))


MIXERS: dict[str, Part] = {"attention": Part(_attention, _attention_flops)}
FEEDFORWARDS: dict[str, Part] = {
    "gated": _dense(lambda model: _feedforward(model, gated=True)),
    "plain": _dense(lambda model: _feedforward(model, gated=False)),
}


def count(model: Model, vocabulary: int) -> int:
    """Number of parameters; a tied head counts once, as the embedding."""
    return sum(parameter.size for parameter in parameters(model, vocabulary))


def flops_per_token(model: Model, vocabulary: int, sequence_length: int, causal: bool = True) -> float:
    """Model FLOPs of the forward and backward pass per token (multiply and add count as two).

    6 per element of every matrix a token is multiplied with (the head included, tied or not; embeddings
    and norms not), and for attention 12 * layers * heads * head_width * sequence_length, as in PaLM
    (Chowdhery et al. 2022, appendix B), of which a causal mask leaves half. Recomputation is not counted.
    `causal=False` gives PaLM's own figure, for comparison with published utilisations.
    """
    forward = 2.0 * vocabulary * model.width
    for block, times in Counter(blocks(model)).items():
        for part in (MIXERS[block.mixer], FEEDFORWARDS[block.feedforward]):
            forward += times * part.forward_flops(model, sequence_length, causal)
    return 3.0 * forward
