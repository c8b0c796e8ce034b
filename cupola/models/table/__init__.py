"""What a model declares: every parameter's name, shape, role, tensor-parallel cut and initialisation.

A pure function of the recipe's `model:` block, without torch, so that the planner, the checks and the
layouts can ask before anything is built. `tests/models/test_table.py` holds it equal to the built module.

A model is a stack of blocks, each a mixer (attention, a state-space layer) and, in most kinds, a feed-forward
layer. Both are looked up by kind in `MIXERS` and `FEEDFORWARDS`: another kind adds a file with its own
`Part` and one entry here, and nothing below changes.
"""

from dataclasses import dataclass, replace

from cupola.models.table import experts, mamba, mamba2, rwkv7, transformer
from cupola.models.table.declaration import Cut, Parameter, Part, Role, linear, vector
from cupola.recipe.model import Model
from cupola.recipe.parametrisation import base_model

__all__ = [
    "FEEDFORWARDS",
    "MIXERS",
    "SCORE",
    "Block",
    "Cut",
    "Parameter",
    "Part",
    "Role",
    "active_count",
    "blocks",
    "count",
    "flops_per_token",
    "linear",
    "parameters",
]

MIXERS: dict[str, Part] = {
    "attention": transformer.ATTENTION,
    "sliding_attention": transformer.SLIDING_ATTENTION,
    "mamba": mamba.MAMBA,
    "mamba2": mamba2.MAMBA2,
    "rwkv7": rwkv7.TIME_MIX,
}
FEEDFORWARDS: dict[str, Part] = {
    "gated": transformer.GATED,
    "plain": transformer.PLAIN,
    "channel_mix": rwkv7.CHANNEL_MIX,
    "experts": experts.EXPERTS,
}


@dataclass(frozen=True)
class Block:
    """The kinds of one block: a key of `MIXERS`, and one of `FEEDFORWARDS` or None."""

    mixer: str
    feedforward: str | None


def blocks(model: Model) -> list[Block]:
    """The stack, from the embedding to the head: the recipe's pattern, repeated."""
    return [Block(*kinds) for kinds in zip(model.mixers(), model.feedforwards(), strict=True)]


SCORE = "score.weight"
"""The scalar head: (1, width), of a reward model or a critic. It is no part of the plain model."""


def parameters(model: Model, vocabulary: int, scores: bool = False) -> list[Parameter]:
    """Every parameter of the built module, in its order.

    A tied head is the embedding and stands here once, as `embedding.weight`.

    Args:
        vocabulary: rows of embedding and head (`model.rows(tokenizer.size)`).
        scores: with the scalar head. It is 0 at first, and has the role of a head: it does not decay.
    """
    found = _parameters(model, vocabulary)
    if scores:
        found.append(Parameter(SCORE, (1, model.width), "head", "replicate", "zero"))
    if (base := base_model(model)) is None:
        return found
    shapes = {p.name: p.shape for p in _parameters(base, vocabulary)} | {SCORE: (1, base.width)}
    return [replace(p, base=shapes[p.name]) for p in found]


def _parameters(model: Model, vocabulary: int) -> list[Parameter]:
    width = model.width
    draw = "head" if model.tied else "rwkv7_embedding" if model.family == "rwkv7" else "normal"
    found = [Parameter("embedding.weight", (vocabulary, width), "embedding", "vocabulary", draw)]
    if model.embedding_norm:
        found += norm(model, "embedding_norm")
    if model.positions == "learned":
        if model.max_positions is None:
            raise ValueError("learned positions need `max_positions`")
        shape = (model.max_positions, width)
        found.append(Parameter("positions.weight", shape, "embedding", "replicate"))
    for layer, block in enumerate(blocks(model)):
        prefix = f"blocks.{layer}"
        for name, part in _parts(block):
            inside = norm(model, f"{name}_norm")
            inside += [replace(p, name=f"{name}.{p.name}") for p in part.parameters(model, layer)]
            found += [replace(p, name=f"{prefix}.{p.name}", layer=layer) for p in inside]
    found += norm(model, "norm")
    if not model.tied:
        found.append(Parameter("head.weight", (vocabulary, width), "head", "vocabulary", "head"))
    return found


def _parts(block: Block) -> list[tuple[str, Part]]:
    found = [("mixer", MIXERS[block.mixer])]
    if block.feedforward is not None:
        found.append(("feedforward", FEEDFORWARDS[block.feedforward]))
    return found


def norm(model: Model, name: str) -> list[Parameter]:
    """RMSNorm has a weight; LayerNorm a weight and a bias."""
    found = [vector(f"{name}.weight", model.width, "one")]
    if model.norm == "layernorm":
        found.append(vector(f"{name}.bias", model.width, "zero"))
    return found


def count(model: Model, vocabulary: int) -> int:
    """Number of parameters; a tied head counts once, as the embedding. Buffers don't count."""
    return sum(p.size for p in parameters(model, vocabulary) if p.role != "buffer")


def active_count(model: Model, vocabulary: int) -> int:
    """Parameters that one token meets: of a mixture's experts, those that it is routed to."""
    idle = 0
    for layer, block in enumerate(blocks(model)):
        for _, part in _parts(block):
            if part.active is not None:
                held = sum(p.size for p in part.parameters(model, layer) if p.role != "buffer")
                idle += held - part.active(model, layer)
    return count(model, vocabulary) - idle


def flops_per_token(model: Model, vocabulary: int, sequence_length: int, causal: bool = True) -> float:
    """Model FLOPs of the forward and backward pass per token (multiply and add count as two).

    6 per element of every matrix a token is multiplied with (the head included, tied or not; embeddings,
    norms and the experts that it is not routed to not), and what a mixer does beyond its matrices: for
    attention 12 * layers * heads * head_width * sequence_length, as in PaLM (Chowdhery et al. 2022, appendix
    B), of which a causal mask leaves half. Recomputation is not counted. `causal=False` gives PaLM's own
    figure, for comparison with published utilisations.
    """
    forward = 2.0 * vocabulary * model.width
    for layer, block in enumerate(blocks(model)):
        for _, part in _parts(block):
            forward += part.forward_flops(model, layer, sequence_length, causal)
    return 3.0 * forward
