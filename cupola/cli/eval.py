"""`cupola eval`."""

from typing import Any

import click

from cupola.cli import measuring
from cupola.cli.options import emit, examples, json_option, read_text, refuse_repeats
from cupola.display import ConsoleDisplay, Display
from cupola.errors import InputError

MODES = ("--probe", "--by-position", "--tasks")
"""What is measured instead of bits per byte; one of them at a time."""
BITS = "bits per byte"
BESIDE = {
    "--text": ("", "--by-position"),
    "--stride": ("",),
    "--length": ("--probe", "--by-position"),
    "--depths": ("--probe",),
    "--samples": ("--probe", "--tasks"),
    "--attempts": ("--tasks",),
    "--pass-at": ("--tasks",),
    "--seed": ("--probe", "--tasks"),
    "--plot": ("--probe", "--by-position"),
}
"""Option -> the modes that it has an effect in; "" is bits per byte."""


@click.command(
    epilog=examples(
        "cupola eval runs/quickstart",
        "cupola eval runs/quickstart --stage pretrain --json",
        "cupola eval runs/quickstart --text README.md --text docs/evaluation.md",
        "git log -p | cupola eval quickstart --text -",
        "cupola eval long --probe passkey --probe needle --length 512 --length 2048 --plot probes.svg",
        "cupola eval long --by-position --length 4096",
        "cupola eval quickstart --tasks addition,sorting --samples 200 --attempts 8 --pass-at 8",
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
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(["passkey", "needle"]),
    help="Ask for what is hidden in a long text; may be repeated.",
)
@click.option("--by-position", is_flag=True, help="Measure loss by how much was read before.")
@click.option(
    "--tasks", metavar="NAME,...", help="Have questions answered: corpora of checked programs, or programs."
)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Of a probe, or of a row (default: the stage's longest row); may be repeated with --probe.",
)
@click.option(
    "--depths", type=click.IntRange(min=1), metavar="N", help="Depths, evenly from 0 to 100% (default: 5)."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Probes in each cell (default: 20), or questions of each task (default: 100).",
)
@click.option(
    "--attempts",
    type=click.IntRange(min=0),
    metavar="N",
    help="Answers sampled to each question (default: 1, or the largest of --pass-at).",
)
@click.option(
    "--pass-at",
    "ks",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="Chance that one of K sampled answers is right; may be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Of probes and samples (default: 0).")
@click.option("--plot", metavar="FILE", help="Draw the figures as SVG.")
@json_option
def command(run: str, stage: str | None, as_json: bool, **options: Any) -> None:
    """Measure bits per byte, beside what `xz -9` makes of the same text.

    Each document, and each FILE, is scored on its own, every byte once. With --probe, --by-position or
    --tasks something else is measured.
    """
    mode = _mode(options)
    files = options["files"]
    refuse_repeats(files, "--text")
    texts = {name: [_scored_text(name)] for name in files}
    asked = measuring.Asked.read(**options)

    from cupola.pipeline.opening import open_run

    display = ConsoleDisplay()
    opened = open_run(run, display, stage)
    if not files and mode in ("", "--by-position"):
        texts = {name: list(found) for name, found in opened.heldout_texts(display).items()}
        if not texts:
            raise InputError(
                f"{run}: has held no text out, since it has read none but conversations; give --text FILE, or"
                " have questions answered with --tasks"
            )
    kind = "texts" if files else "sources"
    measured: measuring.Measured
    if mode == "--probe":
        measured = measuring.probes(opened, asked, display)
    elif mode == "--by-position":
        measured = measuring.by_position(opened, texts, kind, asked, display)
    elif mode == "--tasks":
        measured = measuring.tasks(opened, asked, display)
    else:
        figures = evaluate(opened, texts, kind, options["stride"], display)
        measured = measuring.Measured(figures, *_table(figures, kind))
    result = {
        "run": str(opened.folder),
        "stage": opened.stage,
        "checkpoint": str(opened.checkpoint),
        **measured.figures,
    }
    if as_json:
        emit(result)
    else:
        click.echo(f"{result['run']}, stage {result['stage']}")
        measured.show()


def _mode(options: dict[str, Any]) -> str:
    """What is to be measured: one of `MODES`, or "" for bits per byte.

    Raises:
        InputError: more than one, or an option without effect.
    """
    given = {
        f"--{name.replace('_', '-')}": value is not None and value is not False and value != ()
        for name, value in {
            **options,
            "text": options["files"],
            "probe": options["probes"],
            "length": options["lengths"],
            "pass_at": options["ks"],
        }.items()
    }
    modes = [mode for mode in MODES if given[mode]]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)}: one of them at a time")
    mode = modes[0] if modes else ""
    for option, places in BESIDE.items():
        if given[option] and mode not in places:
            only = " or ".join(place or BITS for place in places)
            raise InputError(f"{option}: has no effect on {mode or BITS}, only on {only}; remove it")
    return mode


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


def _table(result: dict[str, Any], kind: str) -> tuple[list[str], list[list[str]]]:
    rows = result[kind] if len(result[kind]) == 1 else {**result[kind], "together": result}
    return ["", "bits per byte", "xz -9", "bytes", "tokens"], [
        [
            name,
            _figure(facts["bits_per_byte"]),
            _figure(facts["xz_bits_per_byte"]),
            f"{facts['bytes']:,}",
            f"{facts['tokens']:,}",
        ]
        for name, facts in rows.items()
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
