"""Granite 4's hybrids (`granitemoehybrid`): blocks of Mamba-2 or attention, each with a feed-forward layer.

They are dense, or have a mixture of experts with one that every token meets. Four multipliers scale the
embedding, the residual stream, attention's scores and the logits. Attention has rotary positions or none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola.export.config import Config
from cupola.export.format import common, differences, mixers, shown
from cupola.export.mamba2 import head_width, mixer_pairs, refuse_limits
from cupola.export.mixtures import balance_fields, read_balance
from cupola.export.pairs import Pair, joined, renamed
from cupola.export.rotary import read_rope, rope_fields
from cupola.models import table
from cupola.recipe.model import Experts, Mamba2, Model

LAYERS = {
    "mamba": "mamba2",
    "linear_attention": "mamba2",
    "attention": "attention",
    "full_attention": "attention",
}
"""As published, and as transformers 5 writes them."""
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
HELD = {
    "heads",
    "key_value_heads",
    "feedforward",
    "experts",
    "mamba",
    "mamba2",
    "rwkv7",
    "positions",
    "rope",
    "max_positions",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "head_width",
}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
INITIAL_POSITIONS = 2048


class Granite:
    """See `Format`."""

    model_type = "granitemoehybrid"
    prefix = "model."
    states_context = True
    ignored = r".*rotary_emb\.inv_freq"
    aliases: Mapping[str, str] = {}

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        found = mixers(model, ("mamba2", "attention"))
        if model.family not in ("hybrid", "transformer"):
            found.append("family: hybrid")
        bias = {"attention_bias": model.attention_bias, "output_bias": model.attention_bias}
        found += differences(model, HELD, bias)
        if model.positions == "learned":
            found.append("positions: rope or none")
        sizes = model.sizes()
        if sizes.heads and sizes.head_width * sizes.heads != model.width:
            found.append(f"head_width: {model.width // sizes.heads}")
        if (experts := model.experts) is not None:
            wanted: dict[str, Any] = {"score": "softmax", "normalise": True, "first_dense": 0}
            found += [f"experts.{k}: {shown(v)}" for k, v in wanted.items() if getattr(experts, k) != v]
            if not experts.shared:
                found.append("experts.shared: above 0")
            if experts.balance == "bias":
                found.append("experts.balance: auxiliary or none")
        return found

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """See `Format`."""
        sizes, settings, experts = model.sizes(), model.mamba2, model.experts
        if "mamba2" not in model.mixers():  # readers check these sizes even where no layer has them
            settings = Mamba2(head_width=Mamba2().expansion * model.width)
        names = {"mamba2": "mamba", "attention": "attention"}  # which older readers know too
        heads = sizes.heads or 1
        fields = common(model, vocabulary, self.model_type, "GraniteMoeHybridForCausalLM") | {
            "num_hidden_layers": model.layers,
            "hidden_size": model.width,
            "layer_types": [names[kind] for kind in model.mixers()],
            "num_attention_heads": heads,
            "num_key_value_heads": sizes.key_value_heads or heads,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon,
            "attention_bias": model.attention_bias,
            "attention_multiplier": model.attention_multiplier or (sizes.head_width or model.width) ** -0.5,
            "position_embedding_type": "rope" if model.positions == "rope" else "nope",
            **{name: getattr(model, name) for name in MULTIPLIERS},
            "mamba_n_heads": settings.heads(model.width),
            "mamba_d_head": settings.head_width,
            "mamba_d_state": settings.state,
            "mamba_n_groups": settings.groups,
            "mamba_d_conv": settings.convolution,
            "mamba_expand": settings.expansion,
            "mamba_chunk_size": 256,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "num_local_experts": experts.count if experts else 0,
            "num_experts_per_tok": experts.active if experts else 0,
            "intermediate_size": experts.width if experts else sizes.feedforward,
            "shared_intermediate_size": experts.shared if experts else sizes.feedforward,
        }
        if experts:
            fields |= balance_fields(experts)
        if model.positions == "rope":
            fields |= rope_fields(model)
        elif model.max_positions is not None:
            fields["max_position_embeddings"] = model.max_positions
        return fields

    def model(self, config: Config) -> Model:
        """See `Format`."""
        layers, width = config.layers("num_hidden_layers"), config.integer("hidden_size")
        pattern = self._pattern(config, layers)
        config.choice("hidden_act", "silu", {"silu": "swiglu", "swish": "swiglu"})
        config.only("mamba_conv_bias", True)
        config.none("mamba_proj_bias")
        config.training_only("attention_dropout")
        refuse_limits(config)
        experts = self._experts(config)
        shared = config.integer("shared_intermediate_size", default=1024)
        return Model(
            family="hybrid",
            layers=layers,
            width=width,
            pattern=tuple(pattern),
            **(self._read_attention(config, width) if "attention" in pattern else {}),
            feedforward=shared if experts is None else None,
            experts=experts,
            mamba2=self._mamba2(config, width) if "mamba2" in pattern else Mamba2(),
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            embedding_multiplier=config.number("embedding_multiplier", 1.0),
            residual_multiplier=config.number("residual_multiplier", 1.0),
            logits_scaling=config.number("logits_scaling", 1.0),
            tied=config.flag("tie_word_embeddings", False),
            vocabulary=config.integer("vocab_size", least=2),
        )

    def _pattern(self, config: Config, layers: int) -> list[str]:
        """The kind of each layer, under either of its names."""
        kinds, older = (config.list_of(name, LAYERS, layers) for name in ("layer_types", "layers_block_type"))
        if kinds and older and kinds != older:
            config.refuse(
                "layers_block_type", config.get("layers_block_type"), "is not what layer_types says"
            )
        return kinds or older or ["mamba2"] * layers

    def _read_attention(self, config: Config, width: int) -> dict[str, Any]:
        """The settings that only attention has."""
        heads = config.integer("num_attention_heads")
        head, bias = config.head_width(width, heads), config.flag("attention_bias", False)
        scale = config.number("attention_multiplier", 1.0)
        context = config.integer("max_position_embeddings", default=INITIAL_POSITIONS)
        kinds = {"rope": "rope", "nope": "none", "none": "none"}
        found: dict[str, Any] = {
            "heads": heads,
            "key_value_heads": config.integer("num_key_value_heads", default=heads),
            "head_width": head,
            "attention_bias": bias,
            "output_bias": bias,
            "attention_multiplier": None if scale == head**-0.5 else scale,
            "max_positions": context,
            "positions": config.choice("position_embedding_type", "none", kinds),
        }
        if found["positions"] == "rope":
            found["rope"] = read_rope(config, 10000.0, context)
        return found

    def _mamba2(self, config: Config, width: int) -> Mamba2:
        expansion, heads = config.integer("mamba_expand", default=2), config.integer("mamba_n_heads")
        return Mamba2(
            state=config.integer("mamba_d_state", default=256),
            head_width=head_width(config, expansion * width, heads, "mamba_d_head"),
            expansion=expansion,
            groups=config.integer("mamba_n_groups", default=1),
            convolution=config.integer("mamba_d_conv", default=4),
        )

    def _experts(self, config: Config) -> Experts | None:
        count = config.integer("num_local_experts", default=8, least=0)
        if not count:
            return None
        if count == 1:
            config.refuse("num_local_experts", count, "is not computed by Cupola (0, or from 2 on, is)")
        active = config.integer("num_experts_per_tok", default=2)
        return Experts(
            count=count,
            active=active,
            width=config.integer("intermediate_size"),
            shared=config.integer("shared_intermediate_size", default=1024),
            **read_balance(config, active),
        )

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        yield renamed("model.embed_tokens.weight", "embedding.weight")
        yield renamed("model.norm.weight", "norm.weight")
        if not model.tied:
            yield renamed("lm_head.weight", "head.weight")
        for layer, block in enumerate(table.blocks(model)):
            theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
            yield renamed(f"{theirs}.input_layernorm.weight", f"{ours}.mixer_norm.weight")
            yield renamed(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feedforward_norm.weight")
            if block.mixer == "mamba2":
                yield from mixer_pairs(model, f"{theirs}.mamba", f"{ours}.mixer")
            else:
                yield from self._attention(model, f"{theirs}.self_attn", f"{ours}.mixer")
            yield from self._feedforward(model, theirs, f"{ours}.feedforward")

    def _attention(self, model: Model, theirs: str, ours: str) -> Iterator[Pair]:
        for name, part in ATTENTION.items():
            for suffix in ("weight", "bias") if model.attention_bias else ("weight",):
                yield renamed(f"{theirs}.{part}.{suffix}", f"{ours}.{name}.{suffix}")

    def _feedforward(self, model: Model, theirs: str, ours: str) -> Iterator[Pair]:
        dense, hidden = ours, model.sizes().feedforward
        if (experts := model.experts) is not None:
            dense, hidden = f"{ours}.shared", experts.shared
            mixture = f"{theirs}.block_sparse_moe"
            yield renamed(f"{mixture}.router.layer.weight", f"{ours}.router.weight")
            both = [f"{ours}.gate", f"{ours}.up"]
            yield joined(f"{mixture}.input_linear.weight", both, [experts.width] * 2, axis=1)
            yield renamed(f"{mixture}.output_linear.weight", f"{ours}.down")
        both = [f"{dense}.gate.weight", f"{dense}.up.weight"]
        yield joined(f"{theirs}.shared_mlp.input_linear.weight", both, [hidden] * 2)
        yield renamed(f"{theirs}.shared_mlp.output_linear.weight", f"{dense}.down.weight")
