"""Training and decoding of the families beside each other as the sequence grows.

    .venv/bin/python -m bench.architectures [--plot docs/architectures.svg]
    .venv/bin/python -m bench.architectures --only mamba2 --only huggingface-mamba2 --length 2048

Training: tokens a second and peak memory of a step, at equal parameters, in turns as in
`bench.training_step`; every length has processes of its own, so that peak memory is its own. Decoding: time
of one token after a context of so many, in turns within one process. The crossover is where a family becomes
faster than the Transformer, interpolated between lengths on logarithmic axes.
"""

import dataclasses
import json
import math
import statistics
from itertools import pairwise
from typing import Any

import click
import torch

from bench.decoding import decode_milliseconds
from bench.families import FAMILIES, MODELS
from bench.shapes import Shape
from bench.turns import spec_of, start, take_turns

LENGTHS = (512, 2048, 8192, 32768)
CONTEXTS = (1024, 4096, 16384, 65536)


def measure(length: int, names: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """One length: a row for each contender."""
    shape = dataclasses.replace(options["shape"], sequence=length)
    workers, missing = start(
        [(name, False) for name in names], spec_of(shape, options), options["turn_seconds"]
    )
    for name, reason in missing.items():
        click.echo(f"{name} at {length}: not measured ({reason})", err=True)
    take_turns(workers, options["rounds"])
    rows = []
    for worker in workers:
        speeds = [shape.tokens * worker.steps / turn["seconds"] for turn in worker.turns]
        rows.append(
            {
                "name": worker.name,
                "length": length,
                "parameters": worker.parameters,
                "tokens_per_second": statistics.median(speeds),
                "speeds": speeds,
                "step_bytes": max(turn["step_bytes"] for turn in worker.turns),
            }
        )
    for row in rows:
        row["ratio"] = _ratio(row, rows[0])
    return rows


def _ratio(row: dict[str, Any], first: dict[str, Any]) -> float:
    """Median over rounds of the speed relative to the first contender's."""
    pairs = zip(row["speeds"], first["speeds"], strict=True)
    return statistics.median(own / other for own, other in pairs)


def crossover(rows: list[dict[str, Any]], name: str) -> float | None:
    """The length from which a contender is as fast as the first, or None: it isn't within the lengths."""
    ratios = [(math.log(row["length"]), math.log(row["ratio"])) for row in rows if row["name"] == name]
    if ratios and ratios[0][1] >= 0:
        return math.exp(ratios[0][0])
    for (x, y), (next_x, next_y) in pairwise(ratios):
        if y < 0 <= next_y:
            return math.exp(x + (next_x - x) * -y / (next_y - y))
    return None


def show(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Speeds, ratios and memory by length."""
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    found = {(row["name"], row["length"]): row for row in rows}
    click.echo("| tokens a second (to the first; memory of a step) |" + "".join(f" {n} |" for n in lengths))
    click.echo("|---|" + "---|" * len(lengths))
    for name in names:
        cells, parameters = "", ""
        for length in lengths:
            row = found.get((name, length))
            if row is None:
                cells += " - |"
                continue
            parameters = f" ({row['parameters'] / 1e6:.2f}M)"
            memory = row["step_bytes"] / 2**20
            cells += f" {row['tokens_per_second']:.0f} ({row['ratio']:.2f}; {memory:.0f} MiB) |"
        click.echo(f"| {name}{parameters} |{cells}")
    for name in names[1:]:
        where = crossover(rows, name)
        click.echo(
            f"{name}: {'no crossover here' if where is None else f'as fast from {where:.0f} tokens on'}"
        )


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(FAMILIES)), help="These contenders only.")
@click.option("--length", "lengths", multiple=True, type=int, default=LENGTHS, show_default=True)
@click.option("--context", "contexts", multiple=True, type=int, default=CONTEXTS, show_default=True)
@click.option("--layers", default=4, show_default=True, help="Of the Transformer.")
@click.option("--width", default=256, show_default=True)
@click.option("--heads", default=4, show_default=True, help="Of the Transformer.")
@click.option("--vocabulary", default=4096, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Turns of each contender.")
@click.option("--turn-seconds", default=2.0, show_default=True, help="Length of a turn, about.")
@click.option("--decode/--no-decode", default=True, help="Measure decoding as well.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write the curves as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    only: tuple[str, ...],
    lengths: tuple[int, ...],
    contexts: tuple[int, ...],
    decode: bool,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure training and decoding of the families as the sequence grows."""
    torch.set_num_threads(options["threads"])
    shape_keys = ("layers", "width", "heads", "vocabulary", "batch")
    options["shape"] = Shape(sequence=1, **{key: options.pop(key) for key in shape_keys})
    options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    names = list(only or MODELS)
    rows = [row for length in lengths for row in measure(length, names, options)]
    decoding = decode_milliseconds([n for n in names if n in MODELS], contexts, options) if decode else []
    if plot:
        from bench.pictures import draw_curves

        draw_curves(rows, plot)
    if as_json:
        found = {name: crossover(rows, name) for name in names[1:]}
        facts = {"torch": torch.__version__, "training": rows, "crossover": found, "decoding": decoding}
        click.echo(json.dumps(facts))
        return
    show(rows, names)
    for row in decoding:
        times = ", ".join(
            f"{time:.2f} ms at {n}" for n, time in zip(contexts, row["milliseconds"], strict=True)
        )
        click.echo(f"decoding {row['name']}: {times}; state {row['state_bytes'] / 2**20:.2f} MiB at the last")


if __name__ == "__main__":
    command()
