"""The first Mamba in Hugging Face's folders: one matrix makes x and z, and one the step, B and C."""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola.export.config import Config
from cupola.export.format import common, differences, mixers
from cupola.export.mamba2 import ALIASES, note_rescaling, stack_pairs
from cupola.export.pairs import Pair, joined, renamed, reshaped
from cupola.recipe.model import Mamba, Model


class MambaFormat:
    """See `Format`."""

    model_type = "mamba"
    prefix = "backbone."
    states_context = False
    ignored = r"(?!)"
    aliases: Mapping[str, str] = ALIASES

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        if model.family != "mamba":
            return ["family: mamba"]
        held = {"activation", "feedforward", "positions", "rope", "max_positions", "mamba", "mamba2", "rwkv7"}
        return mixers(model, ("mamba",)) + differences(model, held, {})

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """See `Format`."""
        settings = model.mamba
        return common(model, vocabulary, self.model_type, "MambaForCausalLM") | {
            "hidden_size": model.width,
            "num_hidden_layers": model.layers,
            "state_size": settings.state,
            "expand": settings.expansion,
            "intermediate_size": settings.expansion * model.width,
            "conv_kernel": settings.convolution,
            "time_step_rank": settings.rank(model.width),
            "hidden_act": "silu",
            "layer_norm_epsilon": model.norm_epsilon,
            "use_bias": False,
            "use_conv_bias": True,
            "residual_in_fp32": True,
            "rescale_prenorm_residual": False,
            "pad_token_id": 0,
        }

    def model(self, config: Config) -> Model:
        """See `Format`."""
        config.choice("hidden_act", "silu", {"silu": "silu", "swish": "silu"})
        config.none("use_bias", "use_falcon_mamba", "mixer_rms_eps")
        config.only("use_conv_bias", True)
        config.only("rms_norm", True)
        note_rescaling(config)
        rank = None if config.get("time_step_rank", "auto") == "auto" else config.integer("time_step_rank")
        return Model(
            family="mamba",
            layers=config.layers("num_hidden_layers"),
            width=config.integer("hidden_size"),
            mamba=Mamba(
                state=config.integer("state_size", default=16),
                expansion=config.integer("expand", default=2),
                convolution=config.integer("conv_kernel", default=4),
                step_rank=rank,
            ),
            norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
            tied=config.flag("tie_word_embeddings", True),
            vocabulary=config.integer("vocab_size", least=2),
        )

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        yield from stack_pairs(model)
        settings = model.mamba
        inner, state, taps = settings.expansion * model.width, settings.state, settings.convolution
        for layer in range(model.layers):
            theirs, ours = f"backbone.layers.{layer}.mixer", f"blocks.{layer}.mixer"
            names = [f"{ours}.input.weight", f"{ours}.gate.weight"]
            yield joined(f"{theirs}.in_proj.weight", names, [inner, inner])
            convolution = f"{ours}.convolution.weight"
            yield reshaped(f"{theirs}.conv1d.weight", convolution, (inner, 1, taps), (inner, taps))
            yield renamed(f"{theirs}.conv1d.bias", f"{ours}.convolution.bias")
            names = [f"{ours}.{name}.weight" for name in ("dt_down", "b", "c")]
            yield joined(f"{theirs}.x_proj.weight", names, [settings.rank(model.width), state, state])
            for suffix in ("weight", "bias"):
                yield renamed(f"{theirs}.dt_proj.{suffix}", f"{ours}.dt.{suffix}")
            yield renamed(f"{theirs}.A_log", f"{ours}.a_log")
            yield renamed(f"{theirs}.D", f"{ours}.d")
            yield renamed(f"{theirs}.out_proj.weight", f"{ours}.output.weight")
