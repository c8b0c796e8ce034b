"""Llama and those that share its names: Mistral, Ministral, Qwen2, Qwen3, the mixtures Mixtral and Qwen3-MoE.

They differ in biases, in the norm of queries and keys, in which layers see a sliding window, and in the
feed-forward layer; a row of `FORMATS` says which has what.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cupola.export.config import Config
from cupola.export.format import BLOCK, common, differences, mixers
from cupola.export.mixtures import MIXTRAL, QWEN3_MOE, Mixture
from cupola.export.pairs import Pair, renamed
from cupola.export.rotary import read_rope, rope_fields
from cupola.models import table
from cupola.recipe.model import Experts, Model

WHOLE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
INSIDE = {
    "mixer_norm": "input_layernorm",
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "mixer.query_norm": "self_attn.q_norm",
    "mixer.key_norm": "self_attn.k_norm",
    "mixer.output": "self_attn.o_proj",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}
HELD = {
    "heads",
    "key_value_heads",
    "head_width",
    "feedforward",
    "rope",
    "max_positions",
    "mamba",
    "mamba2",
    "rwkv7",
}
LAYERS = {"full_attention": "attention", "sliding_attention": "sliding_attention"}
SCALARS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


@dataclass(frozen=True)
class Llama:
    """One of the relatives."""

    model_type: str
    architecture: str
    qk_norm: bool = False
    biases: Literal["stated", "inputs", "none"] = "none"
    """Of attention: as `attention_bias` says, on query, key and value alone, or none."""
    feedforward_bias: bool = False
    """`mlp_bias` says whether the feed-forward layer has biases."""
    windows: Literal["none", "all", "layers"] = "none"
    """Which layers may see a sliding window: none, all or none of them, any."""
    window: int | None = None
    """The window where the file does not state one."""
    window_is_asked_for: bool = False
    """The window counts only with `use_sliding_window`, and only from layer `max_window_layers` on."""
    head_width: int | None = None
    """Where the file does not state one; None: width / heads."""
    key_value_heads: int | None = None
    """Where the file does not state them; None: as many as heads."""
    epsilon: float = 1e-6
    theta: float = 10000.0
    positions: int = 32768
    mixture: Mixture | None = None
    prefix: str = "model."
    states_context: bool = True
    aliases: ClassVar[Mapping[str, str]] = {}
    ignored: str = r".*rotary_emb\.inv_freq"

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        allowed = ("attention",) if self.windows == "none" else tuple(LAYERS.values())
        found = mixers(model, allowed)
        if self.windows == "all" and len(set(model.mixers())) > 1:
            found.append("pattern: attention or sliding_attention alone")
        bias = model.attention_bias if self.biases == "stated" else self.biases == "inputs"
        wanted = {
            "qk_norm": self.qk_norm,
            "attention_bias": bias,
            "output_bias": bias and self.biases == "stated",
        }
        held = {*HELD, "window", "experts"}
        if self.feedforward_bias:
            held.add("feedforward_bias")
        found += differences(model, held, wanted)
        if self.model_type == "llama" and model.heads and model.width % model.heads:
            found.append("width: a multiple of heads")
        return found + (
            self.mixture.objections(model) if self.mixture else ["experts: null"] * bool(model.experts)
        )

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """See `Format`."""
        sizes = model.sizes()
        fields = common(model, vocabulary, self.model_type, self.architecture) | {
            "num_hidden_layers": model.layers,
            "hidden_size": model.width,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.key_value_heads,
            "head_dim": sizes.head_width,
            "intermediate_size": sizes.feedforward,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            **rope_fields(model),
            **self._window_fields(model),
        }
        if self.biases == "stated":
            fields["attention_bias"] = model.attention_bias
        if self.feedforward_bias:
            fields["mlp_bias"] = model.feedforward_bias
        return fields | (self.mixture.fields(model) if self.mixture else {})

    def _window_fields(self, model: Model) -> dict[str, Any]:
        if self.windows == "none":
            return {}
        kinds = model.mixers()
        sliding = "sliding_attention" in kinds
        fields: dict[str, Any] = {"sliding_window": model.window if sliding else None}
        if self.window_is_asked_for:
            fields["use_sliding_window"] = sliding
        if self.windows == "layers":
            names = {ours: theirs for theirs, ours in LAYERS.items()}
            fields["layer_types"] = [names[kind] for kind in kinds]
        if self.windows == "layers" and self.window_is_asked_for:  # for readers that know no layer_types
            fields["max_window_layers"] = kinds.index("sliding_attention") if sliding else model.layers
        return fields

    def model(self, config: Config) -> Model:
        """See `Format`."""
        layers, heads = config.layers("num_hidden_layers"), config.integer("num_attention_heads")
        width = config.integer("hidden_size")
        config.choice("hidden_act", "silu", {"silu": "swiglu", "swish": "swiglu"})
        if self.biases != "stated":
            config.none("attention_bias")
        if not self.feedforward_bias:
            config.none("mlp_bias")
        for name in SCALARS:
            config.only(name, 1.0)
        config.training_only("attention_dropout", "router_jitter_noise")
        bias = self.biases == "inputs"
        if self.biases == "stated":
            bias = config.flag("attention_bias", False)
        positions = config.integer("max_position_embeddings", default=self.positions)
        window, pattern = self._read_windows(config, layers)
        experts: Experts | None = None
        feedforward = config.integer("intermediate_size")
        if self.mixture is not None:
            experts = self.mixture.read(config, layers)
        return Model(
            layers=layers,
            width=width,
            pattern=pattern,
            heads=heads,
            key_value_heads=config.integer("num_key_value_heads", default=self.key_value_heads or heads),
            head_width=config.head_width(width, heads, self.head_width),
            window=window,
            feedforward=feedforward if experts is None or experts.first_dense else None,
            experts=experts,
            norm_epsilon=config.number("rms_norm_eps", self.epsilon),
            qk_norm=self.qk_norm,
            attention_bias=bias,
            output_bias=bias and self.biases == "stated",
            feedforward_bias=self.feedforward_bias and config.flag("mlp_bias", False),
            rope=read_rope(config, self.theta, positions),
            max_positions=positions,
            tied=config.flag("tie_word_embeddings", False),
            vocabulary=config.integer("vocab_size", least=2),
        )

    def _read_windows(self, config: Config, layers: int) -> tuple[int | None, tuple[str, ...] | None]:
        """The window, and the pattern of blocks where some see no more than it."""
        if self.windows == "none":
            config.none("sliding_window", "use_sliding_window")
            config.list_of("layer_types", {"full_attention": "attention"}, layers)
            return None, None
        stated = "sliding_window" in config.fields
        window = config.get("sliding_window") if stated else self.window
        if self.window_is_asked_for and not config.flag("use_sliding_window", False):
            window = None
        if window is not None:
            window = Config({"sliding_window": window}, config.origin).integer("sliding_window")
        kinds = [LAYERS["sliding_attention" if window else "full_attention"]] * layers
        if self.windows == "layers":
            if self.window_is_asked_for and window is not None:
                full = config.integer("max_window_layers", default=28, least=0)
                kinds = [kind if layer >= full else "attention" for layer, kind in enumerate(kinds)]
            kinds = config.list_of("layer_types", LAYERS, layers) or kinds
        if "sliding_attention" not in kinds:
            return None, None
        if window is None:
            config.refuse("sliding_window", None, "leaves sliding_attention without its width")
        return window, (kinds[0],) if len(set(kinds)) == 1 else tuple(kinds)

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        for parameter in table.parameters(model, 2):
            part, _, suffix = parameter.name.rpartition(".")
            if part in WHOLE:
                yield renamed(f"{WHOLE[part]}.{suffix}", parameter.name)
            elif (match := BLOCK.fullmatch(part)) and match[2] in INSIDE:
                yield renamed(f"model.layers.{match[1]}.{INSIDE[match[2]]}.{suffix}", parameter.name)
        if self.mixture is not None:
            yield from self.mixture.pairs(model)


FORMATS = (
    Llama("llama", "LlamaForCausalLM", biases="stated", feedforward_bias=True, positions=2048),
    Llama(
        "qwen3",
        "Qwen3ForCausalLM",
        qk_norm=True,
        biases="stated",
        windows="layers",
        window=4096,
        window_is_asked_for=True,
        head_width=128,
        key_value_heads=32,
    ),
    Llama(
        "qwen2",
        "Qwen2ForCausalLM",
        biases="inputs",
        windows="layers",
        window=4096,
        window_is_asked_for=True,
        key_value_heads=32,
    ),
    Llama(
        "mistral",
        "MistralForCausalLM",
        windows="all",
        window=4096,
        key_value_heads=8,
        positions=4096 * 32,
    ),
    Llama(
        "ministral",
        "MinistralForCausalLM",
        windows="layers",
        window=4096,
        key_value_heads=8,
        positions=4096 * 32,
    ),
    Llama(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        biases="stated",
        windows="all",
        window=4096,
        window_is_asked_for=True,
        key_value_heads=4,
        mixture=QWEN3_MOE,
    ),
    Llama(
        "mixtral",
        "MixtralForCausalLM",
        windows="all",
        key_value_heads=8,
        epsilon=1e-5,
        theta=1e6,
        positions=4096 * 32,
        mixture=MIXTRAL,
    ),
)
