"""The recipe's `model:` block: the network's shape, of every family."""

import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from cupola.recipe.parametrisation import Multipliers, Parametrisation, multipliers
from cupola.recipe.rotary import Rope
from cupola.recipe.strict import Strict, round_up


class Mamba(Strict):
    """A selective state space, the first Mamba (Gu and Dao 2023)."""

    state: int = Field(default=16, ge=1)
    """Numbers of state for each channel."""
    expansion: int = Field(default=2, ge=1)
    """Width inside the layer, as a multiple of the model's."""
    convolution: int = Field(default=4, ge=1)
    """Taps of the causal convolution."""
    step_rank: int | None = Field(default=None, ge=1)
    """Rank of the step size; by default width / 16, rounded up."""

    def rank(self, width: int) -> int:
        """The rank in force for a model of that width."""
        return self.step_rank or -(-width // 16)


class Mamba2(Strict):
    """State space duality, Mamba-2 (Dao and Gu 2024)."""

    state: int = Field(default=128, ge=1)
    """Numbers of state for each channel."""
    head_width: int = Field(default=64, ge=1)
    """Channels of a head, which share a decay."""
    expansion: int = Field(default=2, ge=1)
    """Width inside the layer, as a multiple of the model's."""
    groups: int = Field(default=1, ge=1)
    """Heads of one group share what they read and write with (B and C)."""
    convolution: int = Field(default=4, ge=1)
    """Taps of the causal convolution."""

    def heads(self, width: int) -> int:
        """Number of heads of a model of that width."""
        return self.expansion * width // self.head_width


class RWKV7(Strict):
    """The generalised delta rule, RWKV-7 "Goose" (Peng et al. 2025)."""

    head_width: int = Field(default=64, ge=2)
    """Channels of a head."""
    decay_rank: int | None = Field(default=None, ge=1)
    """Rank of the decay's map; by default 2.5 sqrt(width), in multiples of 32 as the other ranks."""
    rate_rank: int | None = Field(default=None, ge=1)
    """Rank of the in-context learning rate's map; by default 2.5 sqrt(width)."""
    value_rank: int | None = Field(default=None, ge=1)
    """Rank of the value residual's map; by default 1.7 sqrt(width)."""
    gate_rank: int | None = Field(default=None, ge=1)
    """Rank of the gate's map; by default 5 sqrt(width)."""

    def ranks(self, width: int) -> "Ranks":
        """The ranks in force for a model of that width; the defaults are those of the published trainer."""

        def rank(stated: int | None, factor: float) -> int:
            return stated or max(32, 32 * round(factor * width**0.5 / 32))

        return Ranks(
            decay=rank(self.decay_rank, 2.5),
            rate=rank(self.rate_rank, 2.5),
            value=rank(self.value_rank, 1.7),
            gate=rank(self.gate_rank, 5.0),
        )


@dataclass(frozen=True)
class Ranks:
    """Ranks of RWKV-7's low-rank maps, as they are in force."""

    decay: int
    rate: int
    value: int
    gate: int


class Experts(Strict):
    """A mixture of experts in place of the feed-forward layer; no token is dropped."""

    count: int = Field(ge=2)
    """Number of routed experts."""
    active: int = Field(ge=1)
    """Experts of each token."""
    width: int = Field(ge=1)
    """Hidden width of one expert."""
    shared: int = Field(default=0, ge=0)
    """Hidden width of the expert that every token meets; 0: there is none."""
    first_dense: int = Field(default=0, ge=0)
    """So many of the first blocks keep a plain feed-forward layer."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """What the router's logits become (sigmoid: DeepSeek-V3)."""
    normalise: bool = True
    """The weights of a token's experts sum to 1."""
    balance: Literal["auxiliary", "bias", "none"] = "auxiliary"
    """How loads are evened: by a loss (Fedus et al. 2021), or by a bias on the router that no gradient moves
    (Wang et al. 2024)."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the auxiliary loss."""
    bias_rate: float = Field(default=0.001, gt=0)
    """By how much the bias moves in a step."""


MIXERS = ("attention", "sliding_attention", "mamba", "mamba2", "rwkv7")
"""What a block of a pattern can be."""
FAMILIES = {
    "transformer": ("attention", "sliding_attention"),
    "mamba": ("mamba",),
    "mamba2": ("mamba2",),
    "rwkv7": ("rwkv7",),
    "hybrid": MIXERS,
}
"""The blocks that a family may be made of; the first is what it is made of unless a pattern says else."""


MOST_LAYERS = 10_000
"""Of a model, and repeats in a pattern: a hundred times what is trained; a slip of the keyboard ends here."""
ATTENTION_ONLY = {
    "heads",
    "key_value_heads",
    "head_width",
    "window",
    "qk_norm",
    "attention_bias",
    "output_bias",
    "positions",
    "rope",
    "attention_multiplier",
    "max_positions",
}
"""Settings that mean nothing without attention."""


def _pattern(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("a list of blocks is expected, such as [mamba2 * 3, attention]")
    found: list[str] = []
    for item in items:
        name, times = _repeated(str(item))
        if name not in MIXERS:
            raise ValueError(f"{name!r} is no block; there are {', '.join(MIXERS)}")
        found += [name] * times
    return tuple(found)


def _repeated(item: str) -> tuple[str, int]:
    """`mamba2 * 3`, also with the sign of multiplication -> ("mamba2", 3)."""
    name, sign, times = item.replace("\u00d7", "*").partition("*")
    if sign and not (times.strip().isdecimal() and 0 < int(times) <= MOST_LAYERS):
        raise ValueError(f"{item.strip()!r} repeats no whole number of times, such as mamba2 * 3")
    return name.strip(), int(times) if sign else 1


Pattern = Annotated[
    tuple[str, ...],
    BeforeValidator(_pattern),
    PlainSerializer(list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that a recipe may leave out, as they are in force."""

    heads: int
    head_width: int
    key_value_heads: int
    feedforward: int


class Model(Strict):
    """The network's shape. `base:` takes a shipped preset such as `llama3-8b` or `gpt2-small`."""

    family: Literal["transformer", "mamba", "mamba2", "rwkv7", "hybrid"] = "transformer"
    """The kind of network."""
    layers: int = Field(ge=1, le=MOST_LAYERS)
    """Number of blocks."""
    width: int = Field(ge=1)
    """Width of the residual stream."""
    pattern: Pattern | None = None
    """The blocks, repeated through the layers: `[mamba2 * 3, attention]`; by default all are the family's."""
    heads: int | None = Field(default=None, ge=1)
    """Number of attention's query heads."""
    key_value_heads: int | None = Field(default=None, ge=1)
    """Number of key/value heads (grouped-query attention, Ainslie et al. 2023); by default `heads`."""
    head_width: int | None = Field(default=None, ge=1)
    """Width of a head; by default width / heads."""
    window: int | None = Field(default=None, ge=1)
    """sliding_attention sees so many tokens, its own included."""
    feedforward: int | None = Field(default=None, ge=1)
    """Hidden width of the feed-forward layer; by default 8/3 width (swiglu) or 4 width (gelu, and family
    rwkv7), rounded up to a multiple of 64."""
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    """swiglu (Shazeer 2020) has a gate; gelu (exact or tanh form) does not."""
    experts: Experts | None = None
    """A mixture of experts in place of the feed-forward layers."""
    mamba: Mamba = Mamba()
    """Settings of mamba blocks."""
    mamba2: Mamba2 = Mamba2()
    """Settings of mamba2 blocks."""
    rwkv7: RWKV7 = RWKV7()
    """Settings of rwkv7 blocks."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before each layer of a block and before the head; rwkv7 has layernorm unless stated."""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    """Added to the (mean) square before the root."""
    embedding_norm: bool = False
    """Normalisation of the embedding; rwkv7 has it unless stated."""
    qk_norm: bool = False
    """RMSNorm of every query and key head (Qwen3)."""
    attention_bias: bool = False
    """Biases on query, key and value."""
    output_bias: bool = False
    """Bias on attention's output projection."""
    feedforward_bias: bool = False
    """Biases in the feed-forward layer."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """Of attention: rotary, a learned table (GPT-2, GPT-3), or none."""
    rope: Rope = Rope()
    """Settings of rotary positions."""
    max_positions: int | None = Field(default=None, ge=1)
    """Rows of the learned table; with rope, the context that the model is published for."""
    embedding_multiplier: float = Field(default=1.0, gt=0)
    """The embedding times this enters the stack (Granite; as the three below)."""
    residual_multiplier: float = Field(default=1.0, gt=0)
    """What a layer adds to the residual stream, times this."""
    attention_multiplier: float | None = Field(default=None, gt=0)
    """Scale of attention's scores; by default head_width^-1/2."""
    logits_scaling: float = Field(default=1.0, gt=0)
    """Logits are divided by this."""
    tied: bool = False
    """The head is the embedding."""
    vocabulary: int | None = Field(default=None, ge=2)
    """Rows of embedding and head; by default the tokenizer's, rounded up to a multiple of 64."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights; those that write to the residual stream are divided by
    sqrt(2 layers) (GPT-2)."""
    parametrisation: Parametrisation = Parametrisation()
    """How settings carry over from a smaller model: standard (they don't), mup, depth_mup or completep."""

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("family") == "rwkv7":
            return {"norm": "layernorm", "embedding_norm": True} | value
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        mixers = set(self.mixers())
        absent = {"mamba", "mamba2", "rwkv7"} - mixers
        if self.parametrisation == Parametrisation():
            absent.add("parametrisation")
        if not mixers & {"attention", "sliding_attention"}:
            absent |= ATTENTION_ONLY
        return {key: value for key, value in values.items() if key not in absent}

    def mixers(self) -> tuple[str, ...]:
        """The kind of each block's mixer, from the embedding to the head."""
        return _kinds(self)[0]

    def feedforwards(self) -> tuple[str | None, ...]:
        """The kind of each block's feed-forward layer: gated, plain, experts, channel_mix, or None."""
        return _kinds(self)[1]

    def sizes(self) -> Sizes:
        """The optional sizes with their defaults filled in; of attention, 0 where there is no head."""
        gated = self.activation == "swiglu" and self.family != "rwkv7"
        default = -(-8 * self.width // 3) if gated else 4 * self.width
        heads = self.heads or 0
        return Sizes(
            heads=heads,
            head_width=self.head_width or (self.width // heads if heads else 0),
            key_value_heads=self.key_value_heads or heads,
            feedforward=self.feedforward or round_up(default, 64),
        )

    def is_rotary(self) -> bool:
        """Whether some block turns queries and keys by their positions."""
        return self.positions == "rope" and not {"attention", "sliding_attention"}.isdisjoint(self.mixers())

    def stretched(self, rope: Rope | None, context: int) -> "Model":
        """The model with other rotary positions (None: its own), settled for a context of so many tokens."""
        if not self.is_rotary():
            return self
        settled = (rope or self.rope).at(context, self.sizes().head_width)
        if settled == self.rope:
            return self
        return self.model_copy(update={"rope": settled, "max_positions": context})

    def multipliers(self) -> Multipliers:
        """The constants of the forward pass, those of the parametrisation included."""
        return multipliers(self)

    def rows(self, tokenizer_size: int) -> int:
        """Rows of embedding and head for a tokenizer of that many tokens."""
        return self.vocabulary or round_up(tokenizer_size, 64)


@functools.lru_cache(maxsize=64)
def _kinds(model: Model) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Of each block, mixer and feed-forward layer; remembered: a planner asks for them again and again."""
    pattern = model.pattern or FAMILIES[model.family][:1]
    mixers = tuple(pattern[layer % len(pattern)] for layer in range(model.layers))
    return mixers, tuple(_feedforward(model, mixer, layer) for layer, mixer in enumerate(mixers))


def _feedforward(model: Model, mixer: str, layer: int) -> str | None:
    if mixer == "rwkv7":
        return "channel_mix"
    if mixer == model.family:  # a Mamba block does the work of both
        return None
    if model.experts is not None and layer >= model.experts.first_dense:
        return "experts"
    return "gated" if model.activation == "swiglu" else "plain"
