"""The settings that the `mamba_ssm` package writes, as the published Mamba and Mamba-2 weights have them.

They name the same things otherwise, and leave to the package's defaults what is written here.
"""

from typing import Any

from cupola.export.config import Config

KEY = "ssm_cfg"
"""Only these files have it."""
MAMBA = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "dt_rank": "time_step_rank"}
MAMBA2 = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "ngroups": "n_groups"}


def translated(config: Config) -> Config:
    """The same settings by Hugging Face's names.

    Raises:
        InputError: names what Cupola does not compute: attention, feed-forward layers between, other norms.
    """
    config.none("attn_layer_idx", "attn_cfg", "d_intermediate")
    config.only("rms_norm", True)
    inside = config.get(KEY, {})
    if not isinstance(inside, dict):
        config.refuse(KEY, inside, "is no mapping")
    inner = Config(inside, f"{config.origin}: {KEY}")
    kind = inner.choice("layer", "Mamba1", {"Mamba1": "mamba", "Mamba2": "mamba2"})
    names = MAMBA if kind == "mamba" else MAMBA2
    for name in inside:
        if name not in names and name not in ("layer", "headdim", "chunk_size"):
            inner.refuse(name, inside[name], "is not known to Cupola")
    width, multiple = config.integer("d_model"), config.integer("pad_vocab_size_multiple", default=8)
    fields: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": config.layers("n_layer"),
        "vocab_size": -(-config.integer("vocab_size") // multiple) * multiple,
        "tie_word_embeddings": config.flag("tie_embeddings", True),
    }
    fields |= {theirs: inside[ours] for ours, theirs in names.items() if ours in inside}
    if kind == "mamba2":
        fields.setdefault("n_groups", 1)
        head = inner.integer("headdim", default=64)
        fields |= {"head_dim": head, "num_heads": inner.integer("expand", default=2) * width // head}
    return Config(fields, config.origin)
