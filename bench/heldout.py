"""Held-out bits per byte of the families' recipes at equal tokens and parameters, over seeds.

    .venv/bin/python -m bench.heldout                      # five recipes, three seeds, pre-training only
    .venv/bin/python -m bench.heldout --recipe quickstart --recipe rwkv7 --seed 1

Each is an ordinary `cupola run` into a folder of its own; begun again, it goes on where it was. With --jobs,
so many run at once, each with its share of the threads. The tokenizer and the text are the same for all: they
do not depend on the seed.
"""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.progress import track

RECIPES = ("quickstart", "mamba2", "rwkv7", "hybrid", "mixture")
ROOT = Path(__file__).resolve().parent.parent


def run(recipe: str, seed: int, settings: tuple[str, ...], out: Path, threads: int) -> dict[str, Any]:
    """One run; what its last stage measured on all held-out text."""
    folder = out / f"{recipe}-{seed}"
    overrides = [f"seed={seed}", f"name={recipe}-{seed}", *settings]
    command = [sys.executable, "-m", "cupola", "run", f"recipes/{recipe}.yaml", "--out", str(folder)]
    command += ["--json", *(part for override in overrides for part in ("--set", override))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{recipe}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
    stage = sorted((folder / "stages").glob("[0-9]*"))[-1]
    facts = json.loads((stage / "stage.json").read_text())
    whole = json.loads((folder / "run.json").read_text())
    return {
        "recipe": recipe,
        "seed": seed,
        "parameters": whole["parameters"],
        "bits_per_byte": facts["heldout_bits_per_byte"],
        "tokens": facts["tokens"],
        "seconds": facts["seconds"],
    }


def show(rows: list[dict[str, Any]], recipes: tuple[str, ...]) -> None:
    """One line a recipe: every seed, their mean, and the mean relative to the first recipe's."""
    of = {recipe: [row for row in rows if row["recipe"] == recipe] for recipe in recipes}
    first = statistics.mean(row["bits_per_byte"] for row in of[recipes[0]])
    click.echo(
        "| recipe | parameters | tokens | held-out bits per byte, by seed | mean | to the first | seconds |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for recipe, found in of.items():
        bits = [row["bits_per_byte"] for row in found]
        mean = statistics.mean(bits)
        seconds = statistics.mean(row["seconds"] for row in found)
        click.echo(
            f"| {recipe} | {found[0]['parameters']:,} | {found[0]['tokens']:,} |"
            f" {', '.join(f'{value:.3f}' for value in bits)} | {mean:.3f} | {mean / first - 1:+.1%} |"
            f" {seconds:.0f} |"
        )


@click.command()
@click.option("--recipe", "recipes", multiple=True, default=RECIPES, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--set", "settings", multiple=True, default=("stages.midtrain=null",), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/heldout"), show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at once.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Of all runs together.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    recipes: tuple[str, ...],
    seeds: tuple[int, ...],
    settings: tuple[str, ...],
    out: Path,
    jobs: int,
    threads: int,
    as_json: bool,
) -> None:
    """Train the recipes with several seeds and compare what they reach on held-out text."""
    out = out.resolve()
    wanted = [(recipe, seed) for seed in seeds for recipe in recipes]
    with ThreadPoolExecutor(jobs) as pool:
        shares = max(1, threads // jobs)
        pending = [pool.submit(run, recipe, seed, settings, out, shares) for recipe, seed in wanted]
        rows = [future.result() for future in track(pending, "training", disable=as_json)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    show(rows, recipes)


if __name__ == "__main__":
    command()
