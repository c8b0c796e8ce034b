"""A Hugging Face folder, both ways: settings, weights and tokenizer.

Guarantees: a folder that is written appears whole or not at all, and transformers' `AutoModelForCausalLM` and
`AutoTokenizer` load it without a network, with the same logits and ids. Of a folder that is read, every
tensor is accounted for by name and shape before the first is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cupola import storage
from cupola.chat.encoding import stop_ids
from cupola.chat.template import ChatTemplate, save_template
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import InputError
from cupola.export import config as configs
from cupola.export.config import Config
from cupola.export.formats import HEAD, file_shapes, of_model, own_name, read_model
from cupola.export.pairs import compare, to_ours
from cupola.export.tensors import SHARD_BYTES, TensorFiles, open_folder, write_shards
from cupola.recipe.model import Model

Dtype = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Imported:
    """A model from elsewhere.

    Attributes:
        kind: the name of its format, such as `llama` or `rwkv7`.
        weights: under our names, fp32.
        notes: what a person should hear, one line each.
    """

    kind: str
    model: Model
    vocabulary: int
    weights: dict[str, Tensor]
    notes: list[str]


def write_folder(
    target: Path,
    state: dict[str, Tensor],
    model: Model,
    tokenizer: Tokenizer,
    sequence_length: int,
    dtype: Dtype = "fp32",
    display: Display | None = None,
    shard_bytes: int = SHARD_BYTES,
    template: ChatTemplate | None = None,
) -> str:
    """Write a model as Hugging Face's libraries read it.

    Args:
        target: the folder to make.
        state: the model's state dict.
        sequence_length: of its training; the context that is stated where the model's settings have none.
        template: of a model that has learnt to answer; what ends an answer then ends generation.

    Returns:
        The `model_type` that it was written as.

    Raises:
        InputError: no architecture of Hugging Face's computes the model.
        CupolaError: the disk is full or not writable, or the folder appeared meanwhile.
    """
    format_ = of_model(model)
    vocabulary = state["embedding.weight"].shape[0]
    end = tokenizer.delimiter
    fields = format_.configuration(model, vocabulary)
    if format_.states_context:
        fields.setdefault("max_position_embeddings", sequence_length)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    # transformers 5 reads `dtype`, 4 `torch_dtype`.
    fields |= {"bos_token_id": end, "eos_token_id": end, "dtype": name, "torch_dtype": name}
    with storage.new_folder(target, replace=False) as aside:
        storage.write_json(aside / configs.FILE, fields)
        stop = [end] if template is None else sorted({end, *stop_ids(template, tokenizer)})
        ending = stop if len(stop) > 1 else end
        generation = {"bos_token_id": end, "eos_token_id": ending, "pad_token_id": end}
        storage.write_json(aside / "generation_config.json", generation)
        tokenizer.save(aside)
        if template is not None:
            save_template(template, aside)
        write_shards(
            aside, state, list(format_.pairs(model)), DTYPES[dtype], display or Display(), shard_bytes
        )
    return format_.model_type


def read_folder(folder: Path, display: Display | None = None) -> Imported:
    """Read what `save_pretrained` wrote, or a folder from the hub.

    Raises:
        InputError: a setting that Cupola does not compute, a tensor that is missing, not expected or of
            another shape, a damaged file: one line that names it. Nothing is loaded then.
    """
    config = Config.load(folder / configs.FILE)
    format_, model = read_model(config)
    assert model.vocabulary is not None
    expected = file_shapes(format_, model, model.vocabulary)
    files = open_folder(folder)
    there = {own: name for name in files.shapes if (own := own_name(format_, name, expected)) is not None}
    shapes = {own: files.shapes[name] for own, name in there.items()}
    if model.tied and HEAD in shapes:
        _refuse_other_head(files, there, next(iter(format_.pairs(model))).theirs[0])
        shapes.pop(HEAD)
    compare(shapes, expected, str(folder))
    weights: dict[str, Tensor] = {}
    pairs = list(format_.pairs(model))
    with (display or Display()).task("reading weights", total=len(pairs), unit="tensors") as task:
        for pair in pairs:
            weights |= to_ours({name: files[there[name]] for name in pair.theirs}, [pair])
            task.advance()
    return Imported(format_.model_type, model, model.vocabulary, weights, config.notes)


def _refuse_other_head(files: TensorFiles, there: dict[str, str], embedding: str) -> None:
    """A tied head that is in the file too must be the embedding."""
    if embedding in there and not torch.equal(files[there[HEAD]], files[there[embedding]]):
        raise InputError(
            f"{files.origin}: {HEAD} differs from {embedding}, but {configs.FILE} says that they are tied"
            " (tie_word_embeddings); nothing was loaded"
        )
