"""Mamba-2 in Hugging Face's folders, and its mixer under the names that hybrids share.

One matrix makes z, x, B, C and the step there, and one convolution runs over x, B and C; ours are apart.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola.errors import InputError
from cupola.export.config import Config
from cupola.export.format import common, differences, mixers
from cupola.export.pairs import Pair, joined, renamed
from cupola.recipe.model import Mamba2, Model

ALIASES = {"backbone.embedding.weight": "backbone.embeddings.weight"}
"""As the `mamba_ssm` package writes it."""
UNLIMITED = ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
"""How files write that a step may be of any size; none writes anything else."""
INPUTS = ("gate", "input", "b", "c", "dt")
CONVOLVED = ("input", "b", "c")


def mixer_pairs(model: Model, theirs: str, ours: str) -> Iterator[Pair]:
    """The tensors of one mixer; `theirs` and `ours` are what the names begin with."""
    settings = model.mamba2
    heads = settings.heads(model.width)
    inner, shared = heads * settings.head_width, settings.groups * settings.state
    rows = {"gate": inner, "input": inner, "b": shared, "c": shared, "dt": heads}
    names = [f"{ours}.{name}.weight" for name in INPUTS]
    yield joined(f"{theirs}.in_proj.weight", names, [rows[name] for name in INPUTS])
    for suffix in ("weight", "bias"):
        names = [f"{ours}.{name}_convolution.{suffix}" for name in CONVOLVED]
        channels = [rows[name] for name in CONVOLVED]
        yield joined(f"{theirs}.conv1d.{suffix}", names, channels, unit=suffix == "weight")
    yield renamed(f"{theirs}.dt_bias", f"{ours}.dt_bias")
    yield renamed(f"{theirs}.A_log", f"{ours}.a_log")
    yield renamed(f"{theirs}.D", f"{ours}.d")
    yield renamed(f"{theirs}.norm.weight", f"{ours}.norm.weight")
    yield renamed(f"{theirs}.out_proj.weight", f"{ours}.output.weight")


def stack_pairs(model: Model) -> Iterator[Pair]:
    """What is not a mixer's in Mamba's files, the first and the second."""
    yield renamed("backbone.embeddings.weight", "embedding.weight")
    yield renamed("backbone.norm_f.weight", "norm.weight")
    if not model.tied:
        yield renamed("lm_head.weight", "head.weight")
    for layer in range(model.layers):
        yield renamed(f"backbone.layers.{layer}.norm.weight", f"blocks.{layer}.mixer_norm.weight")


def head_width(config: Config, inner: int, heads: int, name: str) -> int:
    """Channels of a head, which must make up the inner width together.

    Args:
        name: of the field that may state it.
    """
    if inner % heads:
        raise InputError(f"{config.origin}: {heads} heads do not divide the inner width {inner}")
    value = config.get(name)
    width = inner // heads if value in (None, "auto") else config.integer(name)
    if width * heads != inner:
        config.refuse(name, value, f"times {heads} heads is not the inner width {inner}")
    return width


def refuse_limits(config: Config) -> None:
    """Steps that are clamped are not computed."""
    limit = config.get("time_step_limit")
    if limit is not None and limit not in UNLIMITED:
        config.refuse("time_step_limit", limit, "is not computed by Cupola ([0.0, Infinity] is)")


def note_rescaling(config: Config) -> None:
    """A setting of the first initialisation, of which transformers makes more.

    Its classes (as of 5.23) divide the output maps by the square root of the layers each time that they load
    such a file, so that what they compute is not what was trained. The file's weights are the model.
    """
    if config.flag("rescale_prenorm_residual", False):
        config.notes.append(
            "rescale_prenorm_residual true is of initialisation alone: the weights are as in the file, which"
            " transformers divides by the square root of the layers on loading"
        )


class Mamba2Format:
    """See `Format`."""

    model_type = "mamba2"
    prefix = "backbone."
    states_context = False
    ignored = r"(?!)"
    aliases: Mapping[str, str] = ALIASES

    def objections(self, model: Model) -> list[str]:
        """See `Format`."""
        if model.family != "mamba2":
            return ["family: mamba2"]
        held = {"activation", "feedforward", "positions", "rope", "max_positions", "mamba", "mamba2", "rwkv7"}
        return mixers(model, ("mamba2",)) + differences(model, held, {})

    def configuration(self, model: Model, vocabulary: int) -> dict[str, Any]:
        """See `Format`."""
        settings = model.mamba2
        return common(model, vocabulary, self.model_type, "Mamba2ForCausalLM") | {
            "hidden_size": model.width,
            "num_hidden_layers": model.layers,
            "num_heads": settings.heads(model.width),
            "head_dim": settings.head_width,
            "state_size": settings.state,
            "n_groups": settings.groups,
            "expand": settings.expansion,
            "conv_kernel": settings.convolution,
            "hidden_act": "silu",
            "layer_norm_epsilon": model.norm_epsilon,
            "use_bias": False,
            "use_conv_bias": True,
            "residual_in_fp32": True,
            "rescale_prenorm_residual": False,
            "chunk_size": 256,
            "pad_token_id": 0,
        }

    def model(self, config: Config) -> Model:
        """See `Format`."""
        width, expansion = config.integer("hidden_size"), config.integer("expand", default=2)
        heads = config.integer("num_heads")
        config.choice("hidden_act", "silu", {"silu": "silu", "swish": "silu"})
        config.none("use_bias", "norm_before_gate")
        config.only("use_conv_bias", True)
        config.only("rms_norm", True)
        refuse_limits(config)
        note_rescaling(config)
        return Model(
            family="mamba2",
            layers=config.layers("num_hidden_layers"),
            width=width,
            mamba2=Mamba2(
                state=config.integer("state_size", default=128),
                head_width=head_width(config, expansion * width, heads, "head_dim"),
                expansion=expansion,
                groups=config.integer("n_groups", default=8),
                convolution=config.integer("conv_kernel", default=4),
            ),
            norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
            tied=config.flag("tie_word_embeddings", False),
            vocabulary=config.integer("vocab_size", least=2),
        )

    def pairs(self, model: Model) -> Iterator[Pair]:
        """See `Format`."""
        yield from stack_pairs(model)
        for layer in range(model.layers):
            yield from mixer_pairs(model, f"backbone.layers.{layer}.mixer", f"blocks.{layer}.mixer")
