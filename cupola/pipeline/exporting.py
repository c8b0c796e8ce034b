"""A run's weights in the form in which its family is published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cupola.display import Display
from cupola.errors import InputError
from cupola.export import formats, rwkv7
from cupola.export.folder import Dtype, write_folder
from cupola.export.folding import fold
from cupola.pipeline.opening import OpenRun, open_run

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
) -> ExportReport:
    """Write a run's newest finished stage, another stage or one checkpoint as a new folder.

    Args:
        kind: by default RWKV's own file for RWKV-7, which Hugging Face does not have, and else a Hugging Face
            folder.

    Raises:
        InputError: the folder exists, there is no such run, or no format holds its model; nothing is written.
        CupolaError: the weights do not verify, the disk is full, or the folder appeared meanwhile.
    """
    if out.exists():
        raise InputError(f"{out}: exists; an export makes a new folder, so choose another with --out")
    opened = open_run(run, display, stage)
    written = _write(opened, out, dtype, kind, display)
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
