"""RWKV-7 as its own runtime loads it: a `.pth` of tensors under BlinkDL's names; the shapes are the settings.

Low-rank maps are (inputs, outputs) there, all other matrices (outputs, inputs); vectors have two more axes,
of length 1. The first layer has no value residual: files of the published trainer hold one that nothing
reads, which is dropped.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cupola import storage
from cupola.corpus.tokenizer import Tokenizer
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.export.config import refused_settings
from cupola.export.folder import DTYPES, Dtype, Imported
from cupola.export.format import differences, mixers
from cupola.export.pairs import (
    Pair,
    Shapes,
    compare,
    our_shapes,
    renamed,
    reshaped,
    their_shapes,
    to_ours,
    transposed,
)
from cupola.export.tensors import open_pickles
from cupola.recipe.document import dotted
from cupola.recipe.model import RWKV7, Model
from cupola.recipe.model_checks import model_problems

FILE = "model.pth"
KIND = "rwkv7"
WHOLE = {"emb": "embedding", "ln_out": "norm", "head": "head", "blocks.0.ln0": "embedding_norm"}
BLOCK = {
    "ln1": "mixer_norm",
    "ln2": "feedforward_norm",
    "att.receptance": "mixer.receptance",
    "att.key": "mixer.key",
    "att.value": "mixer.value",
    "att.output": "mixer.output",
    "att.ln_x": "mixer.norm",
    "ffn.key": "feedforward.key",
    "ffn.value": "feedforward.value",
}
VECTORS = {
    "att.x_r": "mixer.shift_receptance",
    "att.x_w": "mixer.shift_decay",
    "att.x_k": "mixer.shift_key",
    "att.x_v": "mixer.shift_value",
    "att.x_a": "mixer.shift_rate",
    "att.x_g": "mixer.shift_gate",
    "att.w0": "mixer.decay_bias",
    "att.a0": "mixer.rate_bias",
    "att.v0": "mixer.mix_bias",
    "att.k_k": "mixer.key_scale",
    "att.k_a": "mixer.key_rate",
    "ffn.x_k": "feedforward.shift_key",
}
LOW_RANK = {"w": "decay", "a": "rate", "v": "mix", "g": "gate"}
HELD = {"heads", "key_value_heads", "head_width", "feedforward", "activation", "positions", "rope"}
UNREAD = re.compile(r"blocks\.0\.att\.v[012]")
OWN = ("r_k", "x_r", "w0")
"""Tensors of a time mix that no other version has."""
OTHER_VERSIONS = (
    ("blocks.0.ffn.s_emb.weight", "RWKV-7a (DeepEmbed)", "its channel mix has an embedding of its own"),
    ("blocks.0.att.time_maa_x", "RWKV-6", "its decay and token shift are of another kind"),
    ("blocks.0.att.time_faaaa", "RWKV-5", "its decay does not depend on the token"),
    ("blocks.0.att.ln_x.weight", "RWKV-5", "its decay does not depend on the token"),
    ("blocks.0.att.time_decay", "RWKV-4", "its state is not a matrix"),
)
"""A tensor that tells the version, and why RWKV-7 is something else; the first that is there counts."""


def objections(model: Model) -> list[str]:
    """The settings that a model would need for RWKV's runtime; none: it computes it."""
    if set(model.mixers()) != {"rwkv7"} or model.family != "rwkv7":
        return ["family: rwkv7"]
    held = {*HELD, "window", "max_positions", "mamba", "mamba2", "rwkv7"}
    found = mixers(model, ("rwkv7",)) + differences(
        model, held, {"norm": "layernorm", "embedding_norm": True}
    )
    if model.norm_epsilon != 1e-5:
        found.append("norm_epsilon: 1e-05")
    ranks = model.rwkv7.ranks(model.width)
    if 1 in (ranks.decay, ranks.rate, ranks.value, ranks.gate):
        found.append("rwkv7: ranks above 1")  # the runtime squeezes axes of length 1
    return found


def name_for(model: Model) -> str | None:
    """This format's name where RWKV's runtime computes the model, or None."""
    return None if objections(model) else KIND


def pairs(model: Model) -> Iterator[Pair]:
    """Every tensor of the file, with ours."""
    shapes = our_shapes(model, 2)
    for theirs, ours in WHOLE.items():
        for suffix in ("weight", "bias"):
            if f"{ours}.{suffix}" in shapes:
                yield renamed(f"{theirs}.{suffix}", f"{ours}.{suffix}")
    width, head = model.width, model.rwkv7.head_width
    for layer in range(model.layers):
        begin = f"blocks.{layer}."
        for theirs, ours in BLOCK.items():
            for suffix in ("weight", "bias"):
                if f"{begin}{ours}.{suffix}" in shapes:
                    yield renamed(f"{begin}{theirs}.{suffix}", f"{begin}{ours}.{suffix}")
        for theirs, ours in VECTORS.items():
            if f"{begin}{ours}" in shapes:
                yield reshaped(f"{begin}{theirs}", f"{begin}{ours}", (1, 1, width), (width,))
        yield reshaped(f"{begin}att.r_k", f"{begin}mixer.bonus", (width // head, head), (width,))
        for letter, name in LOW_RANK.items():
            for number, way in ((1, "down"), (2, "up")):
                if f"{begin}mixer.{name}_{way}.weight" in shapes:
                    yield transposed(f"{begin}att.{letter}{number}", f"{begin}mixer.{name}_{way}.weight")


def read_model(shapes: Shapes, origin: str) -> Model:
    """The settings that the shapes of a file say.

    Raises:
        InputError: it is another version of RWKV, or none.
    """
    if OTHER_VERSIONS[0][0] in shapes or not any(f"blocks.0.att.{name}" in shapes for name in OWN):
        for name, version, why in OTHER_VERSIONS:
            if name in shapes:
                raise InputError(
                    f"{origin}: holds {version}, not RWKV-7 (it has {name}): {why}; nothing was imported"
                )
        raise InputError(f"{origin}: holds no RWKV-7 (it has no blocks.0.att.r_k); nothing was imported")
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    layers = len(numbers)
    if (last := max(numbers)) >= layers:  # before a name is made for each that is missing
        gap = min(set(range(layers)) - numbers)
        raise InputError(f"{origin}: has tensors of block {last} and none of block {gap}; nothing was loaded")

    def size(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) <= axis or shapes[name][axis] < 1:
            raise InputError(f"{origin}: 1 tensor is missing or of another shape: {name}; nothing was loaded")
        return shapes[name][axis]

    with refused_settings(origin):
        return Model(
            family="rwkv7",
            layers=layers,
            width=size("emb.weight", 1),
            feedforward=size("blocks.0.ffn.key.weight", 0),
            rwkv7=RWKV7(
                head_width=size("blocks.0.att.r_k", 1),
                decay_rank=size("blocks.0.att.w1", 1),
                rate_rank=size("blocks.0.att.a1", 1),
                value_rank=size("blocks.1.att.v1", 1) if layers > 1 else None,
                gate_rank=size("blocks.0.att.g1", 1),
            ),
            vocabulary=size("emb.weight", 0),
        )


def read_file(path: Path, display: Display | None = None) -> Imported:
    """Read a `.pth` of RWKV-7.

    Raises:
        InputError: another version's, a tensor that is missing, not expected or of another shape, a damaged
            file: one line that names it. Nothing is loaded then.
    """
    files = open_pickles([path], str(path))
    model = read_model(files.shapes, str(path))
    for problem in model_problems(model):
        raise InputError(f"{path}: {dotted(problem.path)}: {problem.message}")
    assert model.vocabulary is not None
    expected = their_shapes(pairs(model), our_shapes(model, model.vocabulary))
    unread = [name for name in files.shapes if UNREAD.fullmatch(name)]
    compare({n: s for n, s in files.shapes.items() if n not in unread}, expected, str(path))
    weights: dict[str, Tensor] = {}
    work = list(pairs(model))
    with (display or Display()).task("reading weights", total=len(work), unit="tensors") as task:
        for pair in work:
            weights |= to_ours({name: files[name] for name in pair.theirs}, [pair])
            task.advance()
    notes = [f"{', '.join(unread)} dropped: the first layer reads no value residual"] if unread else []
    return Imported(KIND, model, model.vocabulary, weights, notes)


def write_folder(
    target: Path,
    state: dict[str, Tensor],
    model: Model,
    tokenizer: Tokenizer,
    dtype: Dtype = "fp32",
    display: Display | None = None,
) -> str:
    """Write a folder of `model.pth`, as the `rwkv` package loads it, and `tokenizer.json`.

    The file has no word for a tied head: the embedding is written a second time, as the head.

    Raises:
        InputError: it is no RWKV-7 as the runtime computes it; names the settings.
        CupolaError: the disk is full or not writable, or the folder appeared meanwhile.
    """
    if wanted := objections(model):
        raise InputError(f"model: RWKV's runtime has no such model; it would need {', '.join(wanted)}")
    tensors = {}
    for pair in pairs(model):
        converted = pair.to([state[name].detach() for name in pair.ours])
        for name, tensor in zip(pair.theirs, converted, strict=True):
            tensors[name] = tensor.to("cpu", DTYPES[dtype]).contiguous()
    if model.tied:
        tensors["head.weight"] = tensors["emb.weight"].clone()
    with storage.new_folder(target, replace=False) as aside, (display or Display()).task("writing weights"):
        tokenizer.save(aside)
        try:
            # Of a file that it opens itself torch does not say why it can't be written.
            with (aside / FILE).open("wb") as file:
                torch.save(tensors, file)
        except OSError as error:
            raise CupolaError(f"{target / FILE}: cannot be written ({error.strerror})") from error
    return KIND
