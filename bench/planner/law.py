"""A law of one's own, checked: a grid of small models, and what it says of one with three times the compute.

    .venv/bin/python -m bench.planner.law --out runs/law

Sizes times horizons of `law.yaml`, each with a whole schedule of its own, are trained as `cupola compare`
does, one process after the other; what is done is not done again. The law is fitted without the last run, the
largest. Beside its prediction stand plain ways: the loss of the largest run in the fit, and a line of the
loss over the logarithm of compute, through all runs or through those that no cheaper one beats.
About half an hour of one thread (OMP_NUM_THREADS=1).
"""

from pathlib import Path
from typing import Any

import click
import numpy as np

from cupola.cli.plan_fit import Result, draw, fit_runs, show
from cupola.compare.comparing import compare
from cupola.compare.folder import GroupFolder
from cupola.compare.variants import Planned, parse_groups, parse_vary, plan_grid
from cupola.display import ConsoleDisplay
from cupola.errors import CupolaError

RECIPE = Path(__file__).with_name("law.yaml")
STAGE = "pretrain"
SHAPES = {"66k": (2, 32), "133k": (3, 48), "279k": (4, 64), "542k": (4, 96)}
"""Layers and width, by parameters as `compare.endings` counts them."""
HORIZONS = ("400k", "1M", "2.5M")
HELD_BACK = ("1.2M", (5, 128), "4M")


def plan() -> tuple[list[Planned], Planned]:
    """The runs of the fit, and the one that is held back."""
    name, shape, horizon = HELD_BACK
    grid = _planned([_variant(name, shape) for name, shape in SHAPES.items()], HORIZONS)
    (held,) = _planned([_variant(name, shape)], [horizon])
    return grid, held


def _variant(name: str, shape: tuple[int, int]) -> str:
    layers, width = shape
    return f"'{name}': {{model.layers: {layers}, model.width: {width}, model.heads: {max(1, width // 32)}}}"


def _planned(variants: list[str], horizons: list[str] | tuple[str, ...]) -> list[Planned]:
    tokens = ",".join(f"{horizon} tokens" for horizon in horizons)
    vary = parse_vary([f"stages.{STAGE}.tokens={tokens}"])
    return plan_grid([str(RECIPE)], parse_groups(variants, []), vary, None, [])


def train(out: Path) -> tuple[list[Path], Path]:
    """The folders of the runs of the fit and of the one held back, all of them done."""
    grid, held = plan()
    result = compare([*grid, held], out, STAGE, 1, ConsoleDisplay())
    if result.error is not None:
        raise result.error
    folder = GroupFolder(out, "comparison")
    return [folder.place(run) for run in grid], folder.place(held)


def baselines(result: Result) -> dict[str, float]:
    """What plain ways say of the run that is held back."""
    runs = sorted(result.runs, key=lambda run: run.flops)
    (held,) = result.held
    best = [run for place, run in enumerate(runs) if all(run.loss < other.loss for other in runs[:place])]

    def line(through: list[Any]) -> float:
        slope, start = np.polyfit([np.log(run.flops) for run in through], [run.loss for run in through], 1)
        return float(start + slope * np.log(held.flops))

    return {
        "the loss of the largest run": runs[-1].loss,
        "a line in log compute, all runs": line(runs),
        f"a line in log compute, the {len(best)} that no cheaper run beats": line(best),
    }


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default="runs/law", show_default=True
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the law as SVG.")
def main(out: Path, plot: Path | None) -> None:
    """Train, fit without the largest, and hold the prediction against it."""
    try:
        grid, held = train(out)
        result = fit_runs(None, (), [str(path) for path in grid], [str(held)], [], STAGE)
        show(result)
        if plot is not None:
            draw(result, plot)
    except CupolaError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_status) from error
    loss = result.held[0].loss
    click.echo()
    for name, said in baselines(result).items():
        click.echo(f"{name}: {said:.4f}, off by {100 * (loss / said - 1):+.2f}%")


if __name__ == "__main__":
    main()
