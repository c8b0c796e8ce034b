"""GPT-2: matrices are (inputs, outputs), and query, key and value are one. GPT-3's shapes are read so too."""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola.export.config import Config
from cupola.export.format import BLOCK, common, differences, mixers
from cupola.export.pairs import Pair, joined, renamed, transposed
from cupola.models import table
from cupola.recipe.model import Model

WHOLE = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
INSIDE = {
    "mixer_norm": "ln_1",
    "mixer.output": "attn.c_proj",
    "feedforward_norm": "ln_2",
    "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}
HELD = {"heads", "feedforward", "rope", "max_positions", "mamba", "mamba2", "rwkv7"}


class GPT2:
    """See `Format`."""

    model_type = "gpt2"
    prefix = "transformer."
    states_context = False
    aliases: Mapping[str, str] = {}
    ignored = r".*\.attn\.(bias|masked_bias)"

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        sizes = model.sizes()
        gelu = "gelu" if model.activation == "gelu" else "gelu_tanh"
        wanted = {
            "norm": "layernorm",
            "positions": "learned",
            "activation": gelu,
            "attention_bias": True,
            "output_bias": True,
            "feedforward_bias": True,
        }
        found = mixers(model, ("attention",))
        found += differences(model, {*HELD, "key_value_heads", "head_width", "window"}, wanted)
        if sizes.key_value_heads != sizes.heads:
            found.append(f"key_value_heads: {sizes.heads}")
        if sizes.head_width * sizes.heads != model.width:
            found.append(f"head_width: {model.width // max(1, sizes.heads)}")
        return found

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """See `Format`."""
        return common(model, vocabulary, self.model_type, "GPT2LMHeadModel") | {
            "n_layer": model.layers,
            "n_embd": model.width,
            "n_head": model.sizes().heads,
            "n_inner": model.sizes().feedforward,
            "n_positions": model.max_positions,
            "activation_function": "gelu" if model.activation == "gelu" else "gelu_new",
            "layer_norm_epsilon": model.norm_epsilon,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }

    def model(self, config: Config) -> Model:
        """See `Format`."""
        width = config.integer("n_embd", "hidden_size")
        config.only("scale_attn_weights", True)
        config.none("scale_attn_by_inverse_layer_idx")
        config.training_only("resid_pdrop", "embd_pdrop", "attn_pdrop")
        activation = config.choice("activation_function", "gelu_new", ACTIVATIONS)
        return Model(
            layers=config.layers("n_layer", "num_hidden_layers"),
            width=width,
            heads=config.integer("n_head", "num_attention_heads"),
            feedforward=config.integer("n_inner", default=4 * width),
            activation="gelu" if activation == "gelu" else "gelu_tanh",
            norm="layernorm",
            norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
            attention_bias=True,
            output_bias=True,
            feedforward_bias=True,
            positions="learned",
            max_positions=config.integer("n_positions", "max_position_embeddings", default=1024),
            tied=config.flag("tie_word_embeddings", True),
            vocabulary=config.integer("vocab_size", least=2),
        )

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        for parameter in table.parameters(model, 2):
            part, _, suffix = parameter.name.rpartition(".")
            if part in WHOLE:
                yield renamed(f"{WHOLE[part]}.{suffix}", parameter.name)
            elif (match := BLOCK.fullmatch(part)) and match[2] in INSIDE:
                how = transposed if parameter.role == "matrix" else renamed
                yield how(f"transformer.h.{match[1]}.{INSIDE[match[2]]}.{suffix}", parameter.name)
        for layer in range(model.layers):
            ours = [f"blocks.{layer}.mixer.{part}" for part in ("query", "key", "value")]
            fused, rows = f"transformer.h.{layer}.attn.c_attn", [model.width] * 3
            yield joined(f"{fused}.bias", [f"{name}.bias" for name in ours], rows)
            yield joined(f"{fused}.weight", [f"{name}.weight" for name in ours], rows, transpose=True)
