"""Tokens a second of one training step: Cupola beside its peers, interleaved.

    .venv/bin/python -m pip install --no-deps -r bench/requirements.txt
    .venv/bin/python -m bench.training_step --shape S --shape M --precision fp32 --precision bf16

Every contender is a process of its own that lives for the whole measurement; they take turns of a few
seconds, in rounds, so that a machine that slows down slows all of them. Figures are medians over rounds; a
ratio is the median of the ratios within a round. All train the same number of weights (as near as their
architectures allow: the table states them) on the same random tokens with fused AdamW.
"""

import dataclasses
import json
import statistics
from typing import Any

import click
import torch

from bench.contenders import CONTENDERS
from bench.shapes import SHAPES, Shape
from bench.turns import Worker, spec_of, start, take_turns
from cupola.train.peak import matmul_peak

SHAPE_HELP = "S, M, or six numbers: layers,width,heads,vocabulary,sequence,batch."


def measure(shape: Shape, names: list[tuple[str, bool]], options: dict[str, Any]) -> dict[str, Any]:
    """One shape in one precision: rows by contender, best first."""
    spec = spec_of(shape, options, options["show_errors"])
    workers, missing = start(names, spec, options["turn_seconds"])
    peaks: list[float] = []

    def measure_peak() -> None:
        peaks.append(matmul_peak(options["precision"], options["device"]))

    take_turns(workers, options["rounds"], measure_peak)
    peak = statistics.median(peaks)
    return {
        "shape": dataclasses.asdict(shape),
        "precision": options["precision"],
        "threads": options["threads"],
        "device": options["device"],
        "matmul_peak_flops": peak,
        "contenders": summarise(workers, shape, peak),
        "missing": missing,
    }


def summarise(workers: list[Worker], shape: Shape, peak: float) -> list[dict[str, Any]]:
    """The rows of the table, the fastest first."""
    speeds = {w.name: [shape.tokens * w.steps / turn["seconds"] for turn in w.turns] for w in workers}
    peers = {w.name: statistics.median(speeds[w.name]) for w in workers if not w.ours}
    best = max(peers, key=lambda name: peers[name]) if peers else None
    rows = []
    for worker in workers:
        speed = statistics.median(speeds[worker.name])
        cpu = [shape.tokens * worker.steps / turn["cpu_seconds"] for turn in worker.turns]
        row = {
            "name": worker.name,
            "parameters": worker.parameters,
            "tokens_per_second": speed,
            "slowest": min(speeds[worker.name]),
            "fastest": max(speeds[worker.name]),
            "tokens_per_cpu_second": statistics.median(cpu),
            "ratio_to_best_peer": None,
            "share_of_matmul_peak": speed * shape.flops / shape.tokens / peak,
            "peak_bytes": max(turn["peak_bytes"] for turn in worker.turns),
            "step_bytes": max(turn["step_bytes"] for turn in worker.turns),
            "first_step_seconds": worker.first_seconds,
            "loss": worker.turns[-1]["loss"],
        }
        if best is not None:
            pairs = zip(speeds[worker.name], speeds[best], strict=True)
            row["ratio_to_best_peer"] = statistics.median(ours / theirs for ours, theirs in pairs)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["tokens_per_second"])


def show(result: dict[str, Any]) -> None:
    """Print one result as a table."""
    shape = Shape(**result["shape"])
    click.echo(
        f"\n{shape.layers} layers, {shape.width} wide, {shape.heads} heads, vocabulary {shape.vocabulary},"
        f" sequence {shape.sequence}, batch {shape.batch}; {result['precision']}, {result['device']},"
        f" {result['threads']} threads; matmul peak {result['matmul_peak_flops'] / 1e9:.0f} GFLOP/s"
    )
    columns = (
        "",
        "parameters",
        "tokens/s",
        "(range)",
        "a CPU s",
        "to best peer",
        "of peak",
        "memory",
        "of a step",
    )
    lines = [columns]
    for row in result["contenders"]:
        ratio = row["ratio_to_best_peer"]
        lines.append(
            (
                row["name"],
                f"{row['parameters'] / 1e6:.2f}M",
                f"{row['tokens_per_second']:.0f}",
                f"({row['slowest']:.0f}-{row['fastest']:.0f})",
                f"{row['tokens_per_cpu_second']:.0f}",
                f"{ratio:.3f}" if ratio else "",
                f"{row['share_of_matmul_peak']:.1%}",
                f"{row['peak_bytes'] / 2**20:.0f} MiB",
                f"{row['step_bytes'] / 2**20:.0f} MiB",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        padded = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *padded]))
    for name, reason in result["missing"].items():
        click.echo(f"{name}: not measured ({reason})")


def parse_shape(text: str) -> Shape:
    """`S`, `M`, or six numbers: layers, width, heads, vocabulary, sequence, batch."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        return Shape(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError):
        raise click.BadParameter(
            f"{text!r}; give S, M or layers,width,heads,vocabulary,sequence,batch"
        ) from None


@click.command()
@click.option("--shape", "shapes", multiple=True, default=["S"], help=SHAPE_HELP)
@click.option(
    "--precision", "precisions", multiple=True, default=["fp32"], type=click.Choice(["fp32", "bf16"])
)
@click.option(
    "--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Measure these contenders only."
)
@click.option("--compiled/--eager", default=False, help="Measure each contender compiled as well.")
@click.option(
    "--threads", default=torch.get_num_threads(), show_default=True, help="CPU threads of each contender."
)
@click.option("--rounds", default=5, show_default=True, help="Turns of each contender.")
@click.option("--turn-seconds", default=3.0, show_default=True, help="Length of a turn, about.")
@click.option("--show-errors", is_flag=True, help="Let the contenders write to standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    shapes: tuple[str, ...],
    precisions: tuple[str, ...],
    only: tuple[str, ...],
    compiled: bool,
    threads: int,
    rounds: int,
    turn_seconds: float,
    show_errors: bool,
    as_json: bool,
) -> None:
    """Measure one training step of Cupola and its peers, in turns."""
    torch.set_num_threads(threads)
    names = [
        (name, also) for name in only or CONTENDERS for also in ((False, True) if compiled else (False,))
    ]
    results = []
    for shape in map(parse_shape, shapes):
        for precision in precisions:
            options = {
                "precision": precision,
                "threads": threads,
                "device": "cuda" if torch.cuda.is_available() else "cpu",
                "show_errors": show_errors,
                "rounds": rounds,
                "turn_seconds": turn_seconds,
            }
            results.append(measure(shape, names, options))
            if not as_json:
                show(results[-1])
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    command()
