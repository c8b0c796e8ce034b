"""`cupola export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cupola.cli.options import emit, examples, json_option
from cupola.display import ConsoleDisplay, size


@click.command(
    epilog=examples(
        "cupola export runs/quickstart --out quickstart-hf",
        "cupola export quickstart --stage pretrain --dtype bf16 --out pretrain-hf --json",
        "cupola export runs/quickstart/stages/01-pretrain/checkpoints/latest --out latest-hf",
        "cupola export runs/goose --format rwkv --out goose-rwkv",
        "cupola export runs/mine --stage sft --adapter --out sft-adapter",
    )
)
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to make; an existing one is refused.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["huggingface", "rwkv"]),
    help="A Hugging Face folder, or the .pth of RWKV's own runtime (default: rwkv for RWKV-7).",
)
@click.option("--stage", metavar="NAME", help="Export this stage (default: the newest finished one).")
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of the weights."
)
@click.option(
    "--adapter", is_flag=True, help="What a stage with lora has added to the weights before it, for PEFT."
)
@json_option
def command(
    run: str, out: Path, kind: Any, stage: str | None, dtype: Any, adapter: bool, as_json: bool
) -> None:
    """Write RUN's weights in the form in which its family is published.

    Settings, weights and tokenizer, as other programs load them: transformers, vLLM and llama.cpp's converter
    read Hugging Face folders. docs/formats.md says which architectures there are, and what has none.
    """
    from cupola.pipeline.exporting import export_run

    report = export_run(run, out.expanduser(), ConsoleDisplay(), stage, dtype, kind, adapter)
    if as_json:
        emit(asdict(report))
    else:
        click.echo(
            f"{report.out}: {report.kind}, {report.dtype}, {size(report.bytes)}, of stage {report.stage}"
        )
