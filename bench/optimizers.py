"""Milliseconds of an optimizer's step and its share of a training step: Cupola's beside their peers.

    .venv/bin/python -m bench.optimizers --shape S --shape M --threads 2

Each contender is a process of its own; those of a family (AdamW, Muon, SOAP) take turns, in rounds, so that a
machine that slows down slows all of them. The ratio to the peer is the median of the ratios within a round;
SOAP's, whose steps are not alike, is that of the means, over a whole number of the peer's intervals. The
share is of a training step of Cupola's model (bf16, `--precision`) with this optimizer in place of AdamW.
"""

import dataclasses
import json
import statistics
from typing import Any

import click
import torch

from bench.shapes import Shape
from bench.training_step import SHAPE_HELP, parse_shape
from bench.turns import OURS, Worker, spec_of, start, take_turns
from bench.updates import PRECONDITION_EVERY

FAMILIES = {
    "adamw": ("adamw", "torch adamw fused", "torch adamw foreach", "torch adamw for-loop"),
    "muon": ("muon", "torch muon", "muon, torch's iteration"),
    "soap": ("soap", "pytorch-optimizer soap"),
    "soap-whole": ("soap", "pytorch-optimizer soap, all parameters"),
}
"""Ours first, then the peer that it is compared with."""


def measure(shape: Shape, families: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """One shape: the training step, and a row for each optimizer."""
    spec = spec_of(shape, options, options["show_errors"])
    workers, missing = start([(OURS, False)], spec, options["turn_seconds"])
    take_turns(workers, options["rounds"])
    step = _milliseconds(workers[0]) if workers else None
    rows: list[dict[str, Any]] = []
    for family in families:
        names = [(name, False) for name in FAMILIES[family]]
        workers, absent = start(names, spec, options["turn_seconds"])
        missing |= absent
        rounds = options["rounds"]
        if family.startswith("soap"):
            for worker in workers:  # equal steps for all, and whole intervals
                worker.steps = 1
            rounds = PRECONDITION_EVERY * -(-rounds // PRECONDITION_EVERY)
        take_turns(workers, rounds)
        rows += summarise(family, workers)
    adamw = next((row["milliseconds"] for row in rows if row["name"] == "adamw"), 0.0)
    for row in rows:
        rest = step["median"] - adamw if step else None
        row["share_of_step"] = row["milliseconds"] / (row["milliseconds"] + rest) if rest else None
    return {
        "shape": dataclasses.asdict(shape),
        "precision": options["precision"],
        "threads": options["threads"],
        "device": options["device"],
        "training_step_milliseconds": step["median"] if step else None,
        "optimizers": rows,
        "missing": missing,
    }


def _milliseconds(worker: Worker) -> dict[str, float]:
    """Of single steps over all turns."""
    steps = [1000 * seconds for turn in worker.turns for seconds in turn["step_seconds"]]
    return {"median": statistics.median(steps), "mean": statistics.fmean(steps), "largest": max(steps)}


def summarise(family: str, workers: list[Worker]) -> list[dict[str, Any]]:
    """The rows of one family, in their order."""
    by_name = {worker.name: worker for worker in workers}
    mine, peer = (by_name.get(name) for name in FAMILIES[family][:2])
    rows = []
    for worker in workers:
        figures = _milliseconds(worker)
        row: dict[str, Any] = {
            "name": worker.name,
            "parameters": worker.parameters,
            "milliseconds": figures["mean"] if family.startswith("soap") else figures["median"],
            "largest_to_median": figures["largest"] / figures["median"],
            "peak_bytes": max(turn["peak_bytes"] for turn in worker.turns),
            "ratio_to_peer": None,
        }
        if mine is not None and peer is not None and worker.name.startswith(mine.name):
            row["ratio_to_peer"] = _ratio(family, worker, peer)
        rows.append(row)
    return rows


def _ratio(family: str, mine: Worker, peer: Worker) -> float:
    if family.startswith("soap"):
        return _milliseconds(mine)["mean"] / _milliseconds(peer)["mean"]
    return statistics.median(
        ours["seconds"] / mine.steps / (theirs["seconds"] / peer.steps)
        for ours, theirs in zip(mine.turns, peer.turns, strict=True)
    )


def show(result: dict[str, Any]) -> None:
    """Print one result as a table."""
    shape = Shape(**result["shape"])
    step = result["training_step_milliseconds"]
    click.echo(
        f"\n{shape.layers} layers, {shape.width} wide, vocabulary {shape.vocabulary}, {shape.tokens} tokens; "
        f"{result['device']}, {result['threads']} threads; "
        f"a training step with AdamW: {f'{step:.0f} ms' if step else '?'} ({result['precision']})"
    )
    lines = [("", "ms a step", "of a step", "to peer", "largest/median", "memory")]
    for row in result["optimizers"]:
        share, ratio = row["share_of_step"], row["ratio_to_peer"]
        lines.append(
            (
                row["name"],
                f"{row['milliseconds']:.1f}",
                f"{share:.1%}" if share is not None else "",
                f"{ratio:.2f}" if ratio else "",
                f"{row['largest_to_median']:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f} MiB",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        padded = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *padded]))
    for name, reason in result["missing"].items():
        click.echo(f"{name}: not measured ({reason})")


@click.command()
@click.option("--shape", "shapes", multiple=True, default=["S"], help=SHAPE_HELP)
@click.option("--only", multiple=True, type=click.Choice(list(FAMILIES)), help="Measure these alone.")
@click.option("--precision", default="bf16", type=click.Choice(["fp32", "bf16"]), show_default=True)
@click.option(
    "--threads", default=torch.get_num_threads(), show_default=True, help="CPU threads of each contender."
)
@click.option("--rounds", default=3, show_default=True, help="Turns of each contender.")
@click.option("--turn-seconds", default=0.5, show_default=True, help="Length of a turn, about.")
@click.option("--show-errors", is_flag=True, help="Let the contenders write to standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    shapes: tuple[str, ...], only: tuple[str, ...], precision: str, threads: int, as_json: bool, **rest: Any
) -> None:
    """Measure the step of each optimizer, Cupola's and its peers', in turns.

    soap-whole, whose peer preconditions embedding and head as well, takes minutes and gigabytes: only where
    it is asked for by --only.
    """
    options = {
        "precision": precision,
        "threads": threads,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **rest,
    }
    results = []
    for shape in map(parse_shape, shapes):
        results.append(measure(shape, only or ("adamw", "muon", "soap"), options))
        if not as_json:
            show(results[-1])
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    command()
