"""LoRA's matrices as PEFT reads them, for an export of the weights on which they were trained.

    model = AutoModelForCausalLM.from_pretrained("base-hf")
    model = PeftModel.from_pretrained(model, "adapter")

Where a format makes one matrix of several of our layers (GPT-2's c_attn, Mamba-2's in_proj), their updates
become one: A's one below the other, B's along the diagonal, the rank the sum of theirs.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cupola import storage
from cupola.errors import CupolaError, InputError
from cupola.export.folder import DTYPES, Dtype
from cupola.export.formats import of_model
from cupola.export.pairs import Pair, Shapes, our_shapes
from cupola.models.table.trained import WEIGHT, A, B
from cupola.recipe.adapting import Lora
from cupola.recipe.model import Model

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
CLOSED = {"mamba": ("output",), "mamba2": ("output",)}
"""Layers of a format to which PEFT adds nothing: it refuses Mamba's out_proj."""


def write_adapter(
    target: Path, adapter: Mapping[str, Tensor], lora: Lora, model: Model, dtype: Dtype = "fp32"
) -> str:
    """Write the folder that `PeftModel.from_pretrained` takes.

    Args:
        target: the folder to make.
        adapter: A and B under our names.
        model: of parametrisation standard, as the weights were exported.

    Returns:
        The `model_type` of the model that it belongs to.

    Raises:
        InputError: no architecture of Hugging Face's computes the model, or PEFT can't adapt a layer.
        CupolaError: the disk is full or not writable, or the folder appeared meanwhile.
    """
    format_ = of_model(model)
    for name in adapter:
        layer = name.split(".")[-2]
        if layer in CLOSED.get(format_.model_type, ()):
            raise InputError(
                f"--adapter: PEFT does not adapt {layer} of {format_.model_type}; train with other"
                " lora.targets, or export the merged model, without --adapter"
            )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module, a, b in updates(adapter, format_.pairs(model), our_shapes(model, 2)):
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.to(DTYPES[dtype]).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.to(DTYPES[dtype]).contiguous()
        ranks[module] = len(a)
    with storage.new_folder(target, replace=False) as aside:
        storage.write_json(aside / CONFIG, _configuration(lora, ranks, format_.model_type))
        try:
            save_file(tensors, aside / FILE, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise CupolaError(f"{target / FILE}: cannot be written ({error})") from error
    return format_.model_type


def updates(
    adapter: Mapping[str, Tensor], pairs: Iterable[Pair], shapes: Shapes
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module of theirs, A (rank, inputs), B (outputs, rank)) of every matrix of theirs that is adapted.

    Args:
        shapes: of our parameters.
    """
    for pair in pairs:
        layers = [name.removesuffix(WEIGHT) for name in pair.ours]
        adapted = [f"{layer}.{A}" in adapter for layer in layers]
        if not any(adapted):
            continue
        rows = [shapes[name][0] for name in pair.ours]
        own = [layer for layer, is_adapted in zip(layers, adapted, strict=True) if is_adapted]
        a = torch.cat([adapter[f"{layer}.{A}"] for layer in own])
        b = a.new_zeros(sum(rows), len(a))
        row = column = 0
        for layer, height, is_adapted in zip(layers, rows, adapted, strict=True):
            if is_adapted:
                part = adapter[f"{layer}.{B}"]
                b[row : row + height, column : column + part.shape[1]] = part
                column += part.shape[1]
            row += height
        yield pair.theirs[0].removesuffix(WEIGHT), a, b


def _configuration(lora: Lora, ranks: Mapping[str, int], model_type: str) -> dict[str, Any]:
    def alpha(rank: int) -> float:
        """By which PEFT comes to our scale."""
        return lora.scale() * (rank**0.5 if lora.rslora else rank)

    other = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha(lora.rank),
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model_type == "gpt2",
        "target_modules": sorted(ranks),
        "rank_pattern": other,
        "alpha_pattern": {module: alpha(rank) for module, rank in other.items()},
    }
