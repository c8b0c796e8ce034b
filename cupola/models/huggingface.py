"""Names and layouts of Hugging Face's Llama, Qwen3 and GPT-2, both ways.

State dicts map name to tensor. `to_huggingface` and `from_huggingface` are inverse to each other and copy
nothing but GPT-2's fused and transposed matrices. `configuration` gives the fields of `config.json` with
which Hugging Face computes the same function; the tests compare logits and all gradients.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cupola.errors import InputError
from cupola.models import table
from cupola.recipe.model import Model

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel"}

_LLAMA_WHOLE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LLAMA = {
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
_GPT2_WHOLE = {"embedding": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"}
_GPT2_MATRICES = ("mixer.output", "feedforward.up", "feedforward.down")
_GPT2 = {
    "mixer_norm": "ln_1",
    "mixer.output": "attn.c_proj",
    "feedforward_norm": "ln_2",
    "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}


def model_type(model: Model) -> str:
    """Hugging Face's `model_type` that computes this model: llama, qwen3 or gpt2.

    Raises:
        InputError: none of them does; names the settings that stand in the way.
    """
    if model.norm == "rmsnorm" and model.positions == "rope" and model.activation == "swiglu":
        kind = "qwen3" if model.qk_norm else "llama"
        wanted: dict[str, Any] = {"output_bias": model.attention_bias}
        if kind == "qwen3":
            wanted["feedforward_bias"] = False
    else:
        kind = "gpt2"
        wanted = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "tied": True}
        wanted |= {"attention_bias": True, "output_bias": True, "feedforward_bias": True}
        if model.activation == "swiglu":
            wanted["activation"] = "gelu_tanh"
        if model.sizes().key_value_heads != model.sizes().heads:
            wanted["key_value_heads"] = model.sizes().heads
        if model.sizes().head_width * model.sizes().heads != model.width:
            wanted["head_width"] = model.width // model.sizes().heads
    wrong = [f"{name}: {value}" for name, value in wanted.items() if getattr(model, name) != value]
    if wrong:
        raise InputError(
            f"model: Hugging Face has no such architecture; {kind} would need {', '.join(wrong)}"
        )
    return kind


def configuration(model: Model, vocabulary: int) -> dict[str, Any]:
    """The fields of Hugging Face's `config.json`, weights in fp32.

    Raises:
        InputError: as `model_type`.
    """
    kind, sizes = model_type(model), model.sizes()
    common = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "vocab_size": vocabulary,
        "tie_word_embeddings": model.tied,
        "initializer_range": model.init_std,
        "dtype": "float32",
    }
    if kind == "gpt2":
        return common | {
            "n_layer": model.layers,
            "n_embd": model.width,
            "n_head": model.sizes().heads,
            "n_inner": sizes.feedforward,
            "n_positions": model.max_positions,
            "activation_function": "gelu_new" if model.activation == "gelu_tanh" else "gelu",
            "layer_norm_epsilon": model.norm_epsilon,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    fields = common | {
        "num_hidden_layers": model.layers,
        "hidden_size": model.width,
        "num_attention_heads": model.sizes().heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_width,
        "intermediate_size": sizes.feedforward,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "attention_bias": model.attention_bias,
        "rope_parameters": _rope_parameters(model),
    }
    if kind == "llama":
        fields["mlp_bias"] = model.feedforward_bias
    if model.max_positions is not None:
        fields["max_position_embeddings"] = model.max_positions
    return fields


def _rope_parameters(model: Model) -> dict[str, Any]:
    rope = model.rope
    fields: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta}
    if rope.rope_type != "default":
        fields["factor"] = rope.factor
    if rope.rope_type == "llama3":
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            fields[name] = getattr(rope, name)
    return fields


def to_huggingface(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names, and in its layouts. A tied head stays the embedding's.

    Raises:
        InputError: as `model_type`.
        KeyError: a parameter is missing.
    """
    kind = model_type(model)
    found = {theirs: state[ours] for ours, theirs in _names(kind, model)}
    for ours, theirs in _transposed(kind, model):
        found[theirs] = state[ours].T.contiguous()
    for three, fused in _fused(kind, model):
        found[fused] = torch.cat([state[name] for name in three]).movedim(0, -1).contiguous()
    return found


def from_huggingface(state: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names; what it holds beside parameters is ignored.

    Raises:
        InputError: as `model_type`.
        KeyError: a parameter is missing.
    """
    kind = model_type(model)
    found = {ours: state[theirs] for ours, theirs in _names(kind, model)}
    for ours, theirs in _transposed(kind, model):
        found[ours] = state[theirs].T.contiguous()
    for three, fused in _fused(kind, model):
        for name, part in zip(three, state[fused].movedim(0, -1).chunk(3), strict=True):
            found[name] = part.contiguous()
    return found


def _names(kind: str, model: Model) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every parameter that only changes its name."""
    gpt2 = kind == "gpt2"
    whole = _GPT2_WHOLE if gpt2 else _LLAMA_WHOLE
    inside, layers = (_GPT2, "transformer.h") if gpt2 else (_LLAMA, "model.layers")
    for parameter in table.parameters(model, 2):
        part, _, suffix = parameter.name.rpartition(".")
        if part in whole:
            yield parameter.name, f"{whole[part]}.{suffix}"
            continue
        _, layer, part = part.split(".", 2)
        if part in inside and not (gpt2 and parameter.role == "matrix"):
            yield parameter.name, f"{layers}.{layer}.{inside[part]}.{suffix}"


def _transposed(kind: str, model: Model) -> Iterator[tuple[str, str]]:
    """GPT-2's matrices are (inputs, outputs)."""
    for layer in range(model.layers if kind == "gpt2" else 0):
        for part in _GPT2_MATRICES:
            yield f"blocks.{layer}.{part}.weight", f"transformer.h.{layer}.{_GPT2[part]}.weight"


def _fused(kind: str, model: Model) -> Iterator[tuple[list[str], str]]:
    """GPT-2's query, key and value are one matrix, (inputs, 3 outputs), and one bias."""
    for layer in range(model.layers if kind == "gpt2" else 0):
        for suffix in ("weight", "bias"):
            ours = [f"blocks.{layer}.mixer.{part}.{suffix}" for part in ("query", "key", "value")]
            yield ours, f"transformer.h.{layer}.attn.c_attn.{suffix}"
