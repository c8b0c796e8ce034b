"""Models with random weights, ours and Hugging Face's, for the tests of export and import."""

import functools
import json
import re
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn

from cupola.corpus.tokenizer import Tokenizer
from cupola.export.folder import write_folder
from cupola.models import build
from cupola.recipe.model import Experts, Mamba, Mamba2, Model, Rope
from tests.models.small_models import GPT2, LLAMA, TRANSFORMERS

VOCABULARY = 320
SHORT = {"original_max_position_embeddings": 32}
MOE = Experts(count=5, active=2, width=24)
MAMBA = Model(family="mamba", layers=2, width=32, mamba=Mamba(state=4, step_rank=3), tied=True)
MAMBA2 = Model(family="mamba2", layers=2, width=32, mamba2=Mamba2(state=8, head_width=16, groups=2))
GRANITE = Model(
    family="hybrid",
    layers=4,
    width=48,
    heads=4,
    key_value_heads=2,
    pattern=("mamba2", "attention"),
    mamba2=Mamba2(state=8, head_width=16),
    feedforward=40,
    positions="none",
    embedding_multiplier=3.0,
    residual_multiplier=0.3,
    attention_multiplier=0.2,
    logits_scaling=2.0,
    tied=True,
)
EXPORTED = TRANSFORMERS | {
    "mamba2": MAMBA2,
    "mamba2-tied": MAMBA2.model_copy(update={"tied": True, "mamba2": Mamba2(state=8, head_width=16)}),
    "granite": GRANITE,
    "granite-rope": GRANITE.model_copy(
        update={
            "positions": "rope",
            "attention_bias": True,
            "output_bias": True,
            "tied": False,
            "attention_multiplier": None,
        }
    ),
    "granite-moe": GRANITE.model_copy(
        update={
            "experts": MOE.model_copy(update={"shared": 16}),
            "feedforward": None,
            "pattern": ("mamba2", "mamba2", "attention", "mamba2"),
        }
    ),
    "granite-attention": LLAMA.model_copy(
        update={"family": "hybrid", "pattern": ("attention",), "residual_multiplier": 0.4}
    ),
    "granite-attention-80": GRANITE.model_copy(  # no multiple of Mamba-2's usual head
        update={"width": 80, "pattern": ("attention",), "mamba2": Mamba2(), "attention_multiplier": None}
    ),
    "granite-unbalanced": GRANITE.model_copy(
        update={"experts": MOE.model_copy(update={"shared": 16, "balance": "none"}), "feedforward": None}
    ),
    "mamba": MAMBA,
    "mamba-untied": MAMBA.model_copy(update={"tied": False, "norm_epsilon": 1e-4}),
    "gpt2-untied": GPT2.model_copy(update={"tied": False}),
    "qwen2": LLAMA.model_copy(update={"attention_bias": True}),
    "qwen3-sliding": LLAMA.model_copy(
        update={"qk_norm": True, "pattern": ("attention", "sliding_attention"), "window": 5}
    ),
    "mistral": LLAMA.model_copy(update={"pattern": ("sliding_attention",), "window": 5}),
    "ministral": LLAMA.model_copy(
        update={"pattern": ("sliding_attention", "attention", "sliding_attention"), "layers": 3, "window": 5}
    ),
    "qwen3_moe": LLAMA.model_copy(
        update={"qk_norm": True, "experts": MOE.model_copy(update={"first_dense": 1, "normalise": False})}
    ),
    "qwen3_moe-normalised": LLAMA.model_copy(
        update={
            "qk_norm": True,
            "experts": MOE,
            "feedforward": None,
            "attention_bias": True,
            "output_bias": True,
        }
    ),
    "llama-yarn": LLAMA.model_copy(
        update={"rope": Rope(rope_theta=500.0, rope_type="yarn", factor=4.0, beta_fast=8.0, **SHORT)}
    ),
    "llama-yarn-deepseek": LLAMA.model_copy(
        update={
            "rope": Rope(
                rope_type="yarn", factor=16.0, mscale=1.0, mscale_all_dim=0.7, truncate=False, **SHORT
            )
        }
    ),
    "llama-dynamic": LLAMA.model_copy(
        update={"rope": Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=64)}
    ),
    "granite-yarn": GRANITE.model_copy(
        update={
            "positions": "rope",
            "rope": Rope(rope_type="yarn", factor=2.0, attention_factor=1.3, **SHORT),
        }
    ),
    "mixtral": LLAMA.model_copy(update={"experts": MOE, "feedforward": None, "rope": Rope(rope_theta=777.0)}),
}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the delimiter."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    vocabulary |= {"Ġt": 256, "he": 257}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "t"), ("h", "e")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(made.to_str())


def randomise(module: nn.Module, seed: int = 5) -> nn.Module:
    """Weights far from their initial values: norms and biases are random too, and blocks weigh more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                scale = re.search(r"norm|ln_", name) and name.endswith("weight")
                parameter.copy_(noise + (1.0 if scale else 0.0))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


@functools.cache
def randomised(name: str, model: Model) -> nn.Module:
    """Ours."""
    return randomise(build(model, VOCABULARY, 0))


def exported(folder: Path, model: Model, module: nn.Module, **options) -> Path:
    """A folder of Hugging Face's with a module's weights."""
    write_folder(folder, dict(module.state_dict()), model, byte_tokenizer(), sequence_length=64, **options)
    return folder


def opened(folder: Path) -> nn.Module:
    """What transformers makes of a folder, and that it missed and ignored nothing."""
    from transformers import AutoModelForCausalLM

    module, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    assert not any(info[key] for key in info), info
    return module


def some_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def change_config(folder: Path, **fields) -> None:
    """Other settings in a folder; a value of ... takes one away."""
    path = folder / "config.json"
    found = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))
