"""`cupola eval`."""

from typing import Any

import click

from cupola.cli.options import emit, examples, json_option, read_text, refuse_repeats
from cupola.display import ConsoleDisplay, Display
from cupola.errors import InputError


@click.command(
    epilog=examples(
        "cupola eval runs/quickstart",
        "cupola eval runs/quickstart --stage pretrain --json",
        "cupola eval runs/quickstart --text README.md --text docs/evaluation.md",
        "git log -p | cupola eval quickstart --text -",
    )
)
@click.argument("run", metavar="RUN|CHECKPOINT")
@click.option("--stage", metavar="NAME", help="Evaluate this stage (default: the newest finished one).")
@click.option(
    "--text",
    "files",
    multiple=True,
    metavar="FILE",
    help="Evaluate this UTF-8 text instead of the held-out split; may be repeated; - is standard input.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="How far the window moves over a document longer than the context (default: half the context).",
)
@json_option
def command(run: str, stage: str | None, files: tuple[str, ...], stride: int | None, as_json: bool) -> None:
    """Measure bits per byte, beside what `xz -9` makes of the same text.

    Each document, and each FILE, is scored on its own, every byte once.
    """
    refuse_repeats(files, "--text")
    texts = {name: [_scored_text(name)] for name in files}

    from cupola.pipeline.opening import open_run

    display = ConsoleDisplay()
    opened = open_run(run, display, stage)
    if not files:
        texts = {name: list(found) for name, found in opened.heldout_texts(display).items()}
    result = {
        "run": str(opened.folder),
        "stage": opened.stage,
        "checkpoint": str(opened.checkpoint),
        **evaluate(opened, texts, "texts" if files else "sources", stride, display),
    }
    if as_json:
        emit(result)
    else:
        _show(result, "texts" if files else "sources")


def _scored_text(name: str) -> str:
    text = read_text(name, "--text")
    if not text:
        raise InputError(f"--text {name}: holds no text, so there is nothing to measure")
    return text


def evaluate(
    opened: Any, texts: dict[str, list[str]], kind: str, stride: int | None, display: Display
) -> dict[str, Any]:
    """The figures of all texts together, and under `kind` those of each name."""
    from cupola.evaluate import BitsPerByte, combined, heldout_bits, xz_bits

    model = heldout_bits(
        opened.module,
        opened.tokenizer,
        texts,
        opened.sequence_length,
        stride=stride,
        precision=opened.precision,
        display=display,
    )
    compressed = {name: xz_bits(documents) for name, documents in texts.items()}

    def facts(figure: BitsPerByte, yardstick: BitsPerByte) -> dict[str, Any]:
        return {**figure.facts(), "xz_bits_per_byte": yardstick.facts()["bits_per_byte"]}

    return {
        **facts(combined(model), combined(compressed)),
        kind: {name: facts(model[name], compressed[name]) for name in texts},
    }


def _show(result: dict[str, Any], kind: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(("", "bits per byte", "xz -9", "bytes", "tokens")):
        table.add_column(title, justify="right" if number else "left")
    rows = result[kind] if len(result[kind]) == 1 else {**result[kind], "together": result}
    for name, facts in rows.items():
        table.add_row(
            name,
            _figure(facts["bits_per_byte"]),
            _figure(facts["xz_bits_per_byte"]),
            f"{facts['bytes']:,}",
            f"{facts['tokens']:,}",
        )
    click.echo(f"{result['run']}, stage {result['stage']}")
    Console().print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
