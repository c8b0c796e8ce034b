"""`cupola import`."""

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option
from cupola.display import ConsoleDisplay


@click.command(
    epilog=examples(
        "cupola import Qwen3-0.6B --out runs/qwen3",
        "cupola import llama-folder --sequence-length 8192 --json",
        "cupola import RWKV-x070-World-0.1B.pth --tokenizer world/tokenizer.json --out runs/goose",
        "cupola eval runs/qwen3 --text README.md",
    )
)
@click.argument("source", metavar="DIR|FILE", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run's folder to make (default runs/NAME); an existing one is refused.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A tokenizer.json, or the folder that holds one (default: the one beside the weights).",
)
@click.option("--name", metavar="NAME", help="The run's name (default: that of RUN, or of DIR or FILE).")
@click.option(
    "--sequence-length",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Rows that evaluation reads (default: the model's context, up to 4096).",
)
@json_option
def command(
    source: Path,
    out: Path | None,
    tokenizer: Path | None,
    name: str | None,
    sequence_length: int | None,
    as_json: bool,
) -> None:
    """Make a run of a published model: a Hugging Face folder, or RWKV-7's .pth.

    The run has one finished stage, `imported`, which eval, generate, export and the others read like any. A
    setting that Cupola does not compute, or a tensor that does not belong, is refused by name, and nothing is
    written.
    """
    from cupola.pipeline.importing import import_model

    report = import_model(
        source.expanduser(),
        out and out.expanduser(),
        ConsoleDisplay(),
        tokenizer and tokenizer.expanduser(),
        name,
        sequence_length,
    )
    if as_json:
        emit(asdict(report))
        return
    click.echo(f"{report.run}: {report.kind}, {report.parameters:,} parameters")
    run = shlex.quote(report.run)
    click.echo(f"next: cupola eval {run} --text FILE, or cupola generate {run} --prompt TEXT")
