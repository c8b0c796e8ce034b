"""Post-training beside TRL: the same weights, the same tokens, the same number of items a step, in turns.

    .venv/bin/python -m bench.posttraining --threads 2
    .venv/bin/python -m bench.posttraining --shape M --only sft --only dpo

A small model first learns to answer (`recipe.yaml`, once, into `--out`) and is exported for Hugging Face, so
that both sides begin from the same weights and answers end by themselves. Every contender is a process of its
own that trains by the loop of its side, `trainer.train()` or `cupola run`, and is let through some steps at a
time. Tokens are those of conversations and pairs; padding, and what fills a row, count for nobody. Before
anything is timed, what both sides make of all the data (mean loss; of pairs also the answers'
log-probabilities) has to agree.
"""

import json
import math
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from bench.posttraining.task import PARENT, RECIPE
from bench.turns import OURS, Worker, start, take_turns
from cupola.display import ConsoleDisplay, Display
from cupola.pipeline.exporting import export_run
from cupola.pipeline.run import run
from cupola.recipe.loading import load

SHAPES = {
    "S": (),
    "M": (
        "model.layers=8",
        "model.width=512",
        "model.heads=8",
        "tokenizer.vocabulary=8192",
        "stages.warm.tokens=40 steps",
        "stages.warm.learning_rate.peak=3e-3",
    ),
}
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Of figures that have to agree: absolute below 1, relative above."""
LENGTH_TOLERANCE = 0.2
"""Of the mean length of sampled answers, which chance moves too."""


@dataclass(frozen=True)
class Comparison:
    """Contenders that take turns.

    Attributes:
        kinds: contender -> (function, side) of `ours` or `theirs`; Cupola's own way first, then its peers.
    """

    stage: str
    unit: str
    kinds: dict[str, tuple[str, str]]


def _pair(stage: str, unit: str, kind: str) -> Comparison:
    return Comparison(stage, unit, {OURS: (kind, "ours"), "TRL": (kind, "theirs")})


COMPARISONS = {
    "sft": Comparison(
        "sft",
        "tokens",
        {
            OURS: ("packed", "ours"),
            "cupola, padded": ("padded", "ours"),
            "TRL": ("padded", "theirs"),
            "TRL, packed": ("packed", "theirs"),
        },
    ),
    "dpo": _pair("dpo", "tokens", "pairs"),
    "dpo-reference": _pair("dpo", "tokens", "reference"),
    "grpo-sampling": _pair("grpo", "completions", "sampling"),
    "grpo": _pair("grpo", "completions", "rewards"),
}


def parent(settings: list[str], out: Path, display: Display) -> None:
    """The weights that everything begins from: trained unless they are there, and exported."""
    report = run(load(RECIPE, settings), out, PARENT, display, check_first=False)
    if report.error is not None:
        raise report.error
    shutil.rmtree(out / "exported", ignore_errors=True)
    export_run(out, out / "exported", display, stage=PARENT)


def measure(name: str, settings: list[str], out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One comparison.

    Raises:
        ClickException: the contenders do not compute the same.
    """
    comparison = COMPARISONS[name]
    spec = {
        "worker": "bench.posttraining.worker",
        "stage": comparison.stage,
        "kinds": comparison.kinds,
        "settings": settings,
        "run": str(out),
        **{key: options[key] for key in ("precision", "threads", "at_once", "show_errors")},
    }
    names = [(contender, False) for contender in comparison.kinds]
    workers, missing = start(names, spec, options["turn_seconds"])
    if fault := disagreement({w.name: w.ready["first"] for w in workers}, TOLERANCE[options["precision"]]):
        for worker in workers:
            worker.close()
        raise click.ClickException(f"{name}: {fault}; nothing was measured")
    take_turns(workers, options["rounds"])
    lengths = {w.name: {"length": _figures(w).get("completion_length", 0.0)} for w in workers}
    if fault := disagreement(lengths, LENGTH_TOLERANCE):
        raise click.ClickException(f"{name}: {fault}; what was measured is not the same work")
    libraries = [worker.ready["library"] for worker in workers if "library" in worker.ready]
    return {
        "name": name,
        "unit": comparison.unit,
        "library": libraries[0] if libraries else None,
        "first": workers[0].ready["first"] if workers else {},
        "contenders": summarise(workers),
        "missing": missing,
    }


def disagreement(found: dict[str, dict[str, float]], tolerance: float) -> str | None:
    """Which figure the contenders differ in, if they do."""
    for figure in next(iter(found.values()), {}):
        values = {name: figures[figure] for name, figures in found.items()}
        low, high = min(values.values()), max(values.values())
        alike = high - low <= tolerance * max(1.0, abs(high), abs(low))
        if not (alike and all(map(math.isfinite, values.values()))):
            return f"{figure} is " + ", ".join(f"{value:.6g} ({name})" for name, value in values.items())
    return None


def _speeds(worker: Worker, clock: str = "seconds") -> list[float]:
    """Units a second, by turn."""
    return [turn["units"] / turn[clock] for turn in worker.turns]


def _figures(worker: Worker) -> dict[str, float]:
    """Of all turns, the mean."""
    return {
        name: statistics.fmean(turn["figures"][name] for turn in worker.turns)
        for name in worker.turns[0]["figures"]
    }


def summarise(workers: list[Worker]) -> list[dict[str, Any]]:
    """A row for each contender; ratios are of Cupola's own way to it, the median of those within a round."""
    ours = next((_speeds(worker) for worker in workers if worker.ours), None)
    rows = []
    for worker in workers:
        speeds = _speeds(worker)
        ratios = [mine / theirs for mine, theirs in zip(ours, speeds, strict=True)] if ours else []
        rows.append(
            {
                "name": worker.name,
                "parameters": worker.parameters,
                "per_second": statistics.median(speeds),
                "slowest": min(speeds),
                "fastest": max(speeds),
                "cupola_to_it": statistics.median(ratios) if ratios and not worker.ours else None,
                "per_cpu_second": statistics.median(_speeds(worker, "cpu_seconds")),
                "steps_of_a_turn": worker.steps,
                "figures": _figures(worker),
                "peak_bytes": max(turn["peak_bytes"] for turn in worker.turns),
            }
        )
    return rows


def show(result: dict[str, Any]) -> None:
    """Print one comparison as a table."""
    first = ", ".join(f"{name} {value:.4f}" for name, value in result["first"].items())
    click.echo(f"\n{result['name']}{f'; both begin with {first}' if first else ''}")
    lines = [("", f"{result['unit']}/s", "(range)", "a CPU s", "cupola to it", "memory", "")]
    for row in result["contenders"]:
        ratio = row["cupola_to_it"]
        notes = ", ".join(
            f"{name.replace('_', ' ')} {row['figures'][name]:.2f}"
            for name in ("completion_length", "truncated", "reward")
            if name in row["figures"]
        )
        lines.append(
            (
                row["name"],
                f"{row['per_second']:.4g}",
                f"({row['slowest']:.4g}-{row['fastest']:.4g})",
                f"{row['per_cpu_second']:.4g}",
                f"{ratio:.2f}" if ratio else "",
                f"{row['peak_bytes'] / 2**20:.0f} MiB",
                notes,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        padded = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *padded]).rstrip())
    for name, reason in result["missing"].items():
        click.echo(f"{name}: not measured ({reason})")


@click.command()
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=["S"])
@click.option("--only", multiple=True, type=click.Choice(list(COMPARISONS)), help="Measure these alone.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "bf16"]), show_default=True)
@click.option(
    "--threads", default=2, show_default=True, help="CPU threads of each contender, which run in turns."
)
@click.option(
    "--at-once",
    default=8,
    show_default=True,
    help="Items of a pass where they are padded; the default is TRL's.",
)
@click.option("--rounds", default=5, show_default=True, help="Turns of each contender.")
@click.option("--turn-seconds", default=6.0, show_default=True, help="Length of a turn, about.")
@click.option("--set", "overrides", multiple=True, help="Change a setting of the recipe.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/posttraining"), show_default=True)
@click.option("--show-errors", is_flag=True, help="Let the contenders write to standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(
    shapes: tuple[str, ...],
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure post-training beside TRL's, in turns."""
    torch.set_num_threads(options["threads"])
    results = []
    for shape in shapes:
        settings = [*SHAPES[shape], *overrides]
        parent(settings, (out / shape).resolve(), Display() if as_json else ConsoleDisplay())
        for name in only or COMPARISONS:
            result = measure(name, settings, (out / shape).resolve(), options)
            results.append({"shape": shape, **result})
            if not as_json:
                show(result)
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, **options, "results": results}))


if __name__ == "__main__":
    command()
