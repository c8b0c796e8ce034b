"""The plan of our own runs beside what came of them: small recipes, each trained in a process of its own.

    .venv/bin/python -m bench.planner.own
    .venv/bin/python -m bench.planner.own --only rwkv7 --json > own.json

Each begins in an empty folder, so that it is planned from its dry run. A line for each stage: planned and
happened peak memory, seconds of a step and seconds in all, with the errors, and the median and worst of each
at the end. It wants a quiet machine: what others took of the cores stands beside it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from cupola.display import duration, size
from cupola.plan.own import seconds_of

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["stages.pretrain.tokens=400k"]
RUNS: dict[str, list[str]] = {
    "transformer": ["quickstart", "--until", "pretrain", *SHORT],
    "mamba2": ["mamba2", "--until", "pretrain", "stages.pretrain.tokens=200k"],
    "rwkv7": ["rwkv7", "--until", "pretrain", "stages.pretrain.tokens=200k"],
    "long rows": [
        "quickstart",
        "--until",
        "pretrain",
        "stages.pretrain.tokens=200k",
        "stages.pretrain.sequence_length=2048",
        "stages.pretrain.batch_tokens=8192",
    ],
    "wider": [
        "quickstart",
        "--until",
        "pretrain",
        "stages.pretrain.tokens=120k",
        "model.width=512",
        "model.heads=8",
        "stages.pretrain.optimizer=adamw",
        "stages.pretrain.learning_rate.peak=1e-3",
    ],
    "stages": [
        "quickstart",
        *SHORT,
        "stages.midtrain.tokens=100k",
        "stages.long.tokens=100k",
        "stages.sft.tokens=300k",
        "stages.dpo.tokens=100k",
        "stages.rl.tokens=10 steps",
    ],
}
"""Name -> recipe, options and settings: the families, a growing batch and row, long rows, all objectives."""
FIGURES = {"memory_bytes": size, "step_seconds": seconds_of, "total_seconds": duration}
AT_PACE = ("step_seconds_at_pace", "total_seconds_at_pace")


def run(name: str, folder: Path) -> dict[str, Any]:
    """Train one and give its plan beside what happened; `failed` with the last line where it fails."""
    recipe, *rest = RUNS[name]
    settings = [part for word in rest for part in (["--set", word] if "=" in word else [word])]
    command = [sys.executable, "-m", "cupola", "run", recipe, *settings, "--out", str(folder), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report["plan"]


def summary(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each figure over all stages: median and largest error, in per cent, and how many are within 10."""
    made = {}
    for figure in (*FIGURES, *AT_PACE):
        pairs = [stage.get(figure) for plan in found.values() for stage in plan.get("stages", {}).values()]
        errors = [abs(pair["error_percent"]) for pair in pairs if pair and pair["error_percent"] is not None]
        if errors:
            made[figure] = {
                "stages": len(errors),
                "median": statistics.median(errors),
                "worst": max(errors),
                "within_10": sum(error <= 10 for error in errors),
            }
    return made


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(RUNS)), help="Some of the runs.")
@click.option("--json", "as_json", is_flag=True, help="Every stage and the summary, as JSON.")
def main(only: tuple[str, ...], as_json: bool) -> None:
    """Plan and outcome of our own runs."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(only or RUNS):
            click.echo(f"{name} ...", err=True)
            found[name] = run(name, Path(folder) / str(number))
    if as_json:
        click.echo(json.dumps({"runs": found, "summary": summary(found)}, indent=1))
        return
    click.echo(f"{'run':<12} {'stage':<9} {'memory':>25} {'a step':>25} {'in all':>25}")
    for name, plan in found.items():
        if "failed" in plan:
            click.echo(f"{name:<12} {plan['failed']}")
        for stage, facts in plan.get("stages", {}).items():
            cells = [_cell(facts[figure], shown) for figure, shown in FIGURES.items()]
            notes = f"  {'; '.join(facts['notes'])}" if facts["notes"] else ""
            click.echo(f"{name:<12} {stage:<9} {' '.join(cells)}{notes}")
        if plan.get("total_seconds") and len(plan["stages"]) > 1:
            blank = " " * 25
            click.echo(f"{name:<12} {'all':<9} {blank} {blank} {_cell(plan['total_seconds'], duration)}")
    for figure, errors in summary(found).items():
        click.echo(
            f"{figure}: median error {errors['median']:.1f}%, worst {errors['worst']:.1f}%,"
            f" {errors['within_10']} of {errors['stages']} within 10%"
        )


def _cell(pair: dict[str, Any] | None, shown: Any) -> str:
    if pair is None:
        return f"{'–':>25}"
    words = f"{shown(pair['planned'])} / {shown(pair['happened'])} {pair['error_percent']:+.1f}%"
    return f"{words:>25}"


if __name__ == "__main__":
    main()
