"""A run's weights in the form in which its family is published, or what a stage with LoRA adds to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cupola.checkpoint import folder as checkpoint
from cupola.display import Display
from cupola.errors import InputError
from cupola.export import formats, rwkv7
from cupola.export.adapter import write_adapter
from cupola.export.folder import Dtype, write_folder
from cupola.export.folding import fold
from cupola.models.table.trained import WEIGHT, B
from cupola.pipeline.opening import OpenRun, open_run
from cupola.recipe.adapting import Lora

Kind = Literal["huggingface", "rwkv"]


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    run: str
    stage: str
    checkpoint: str
    out: str
    kind: str
    """The name of the format, such as `llama`."""
    dtype: Dtype
    bytes: int


def export_run(
    run: str | Path,
    out: Path,
    display: Display,
    stage: str | None = None,
    dtype: Dtype = "fp32",
    kind: Kind | None = None,
    adapter: bool = False,
) -> ExportReport:
    """Write a run's newest finished stage, another stage or one checkpoint as a new folder.

    Args:
        adapter: not the weights but what LoRA has added to those of the stage before, for PEFT.
        kind: by default RWKV's own file for RWKV-7, which Hugging Face does not have, and else a Hugging Face
            folder.

    Raises:
        InputError: the folder exists, there is no such run, no format holds its model, or the stage has no
            LoRA; nothing is written.
        CupolaError: the weights do not verify, the disk is full, or the folder appeared meanwhile.
    """
    if out.exists():
        raise InputError(f"{out}: exists; an export makes a new folder, so choose another with --out")
    opened = open_run(run, display, stage)
    written = (
        _write_adapter(opened, out, dtype, kind, display)
        if adapter
        else _write(opened, out, dtype, kind, display)
    )
    return ExportReport(
        run=str(opened.folder),
        stage=opened.stage,
        checkpoint=str(opened.checkpoint),
        out=str(out),
        kind=written,
        dtype=dtype,
        bytes=sum(path.stat().st_size for path in out.iterdir()),
    )


def _write(opened: OpenRun, out: Path, dtype: Dtype, kind: Kind | None, display: Display) -> str:
    model = opened.model
    if kind is None:
        kind = "rwkv" if model.family == "rwkv7" else "huggingface"
    format_of = formats.name_for if kind == "huggingface" else rwkv7.name_for
    model, state = fold(model, opened.module.state_dict(), format_of, display)
    if kind == "rwkv":
        return rwkv7.write_folder(out, state, model, opened.tokenizer, dtype, display)
    if model.family == "rwkv7":
        raise InputError("--format huggingface: Hugging Face has no RWKV-7; take --format rwkv")
    return write_folder(
        out,
        state,
        model,
        opened.tokenizer,
        opened.sequence_length,
        dtype,
        display,
        template=opened.template if opened.answers else None,
    )


def _write_adapter(opened: OpenRun, out: Path, dtype: Dtype, kind: Kind | None, display: Display) -> str:
    settings = opened.facts.get("lora")
    if settings is None:
        raise InputError(
            f"--adapter: stage {opened.stage} was trained without LoRA; choose another with --stage"
        )
    if kind == "rwkv" or opened.recipe.model.family == "rwkv7":
        raise InputError("--adapter: PEFT has no RWKV-7; export the merged model, without --adapter")
    lora = Lora.model_validate(settings)
    if lora.train:
        raise InputError(
            f"--adapter: stage {opened.stage} has trained {', '.join(lora.train)} in full too, which is no"
            " part of an adapter; export the merged model, without --adapter"
        )
    if not (opened.checkpoint / checkpoint.ADAPTER).is_file():
        raise InputError(f"--adapter: stage {opened.stage} is not finished; run it to its end")
    tensors = checkpoint.load_adapter(opened.checkpoint)
    # What is folded into a weight is folded into its B.
    layers = [name.removesuffix(f".{B}") for name in tensors if name.endswith(f".{B}")]
    weights = {f"{layer}{WEIGHT}": tensors[f"{layer}.{B}"] for layer in layers}
    model, weights = fold(opened.recipe.model, weights, formats.name_for, display)
    tensors |= {f"{layer}.{B}": weights[f"{layer}{WEIGHT}"] for layer in layers}
    return write_adapter(out, tensors, lora, model, dtype)
