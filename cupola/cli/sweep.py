"""`cupola sweep`."""

from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option, recipe_argument, set_option, show_table
from cupola.display import ConsoleDisplay
from cupola.paths import runs_root

RATE = "stages.pretrain.learning_rate"


@click.command(
    epilog=examples(
        f"cupola sweep quickstart --over {RATE}=1e-4..1e-2:log",
        f"cupola sweep quickstart --over {RATE}=1e-3..3e-2:log --trials 16 --factor 4 --jobs 2",
        "cupola sweep quickstart --over stages.pretrain.optimizer.weight_decay=0..0.3 --trials 5 --json",
    )
)
@recipe_argument
@click.option(
    "--over",
    required=True,
    metavar="KEY=LOW..HIGH[:log]",
    help="The setting and its range; with :log spaced evenly by ratio.",
)
@click.option("--trials", default=9, type=click.IntRange(min=3), show_default=True, help="Values tried.")
@click.option(
    "--factor", default=3, type=click.IntRange(min=2), show_default=True, help="One of so many goes on."
)
@set_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder of all trials (default runs/NAME-sweep-KEY)."
)
@click.option("--jobs", default=1, type=click.IntRange(min=1), show_default=True, help="Trials at once.")
@click.option(
    "--until", metavar="STAGE", help="The stage that is judged (default: that of KEY, else the first)."
)
@json_option
def command(
    recipe: str,
    over: str,
    trials: int,
    factor: int,
    overrides: tuple[str, ...],
    out: Path | None,
    jobs: int,
    until: str | None,
    as_json: bool,
) -> None:
    """Find the best value of a setting of RECIPE by successive halving.

    Every value is trained to a first part of the stage; the best go on from their checkpoints, one of FACTOR
    each time, two at least to the end. Judged by held-out bits per byte, all at one position of the same
    schedule. What was interrupted goes on. Into the folder go sweep.html, sweep.json and sweep.svg.
    """
    from cupola.compare.halving import parse_over
    from cupola.compare.sweeping import plan_sweep

    found = parse_over(over, trials)
    stage, planned = plan_sweep(recipe, found, factor, overrides, until)

    from cupola.compare.page import sweep_columns, sweep_rows
    from cupola.compare.sweeping import sweep

    name = f"{planned[0].recipe.name}-sweep-{found.key.rpartition('.')[2]}"
    result = sweep(recipe, found, factor, stage, planned, out or runs_root() / name, jobs, ConsoleDisplay())
    if as_json:
        emit(result.as_json())
    else:
        show_table(sweep_columns(result), sweep_rows(result))
        click.echo(result.verdict)
        click.echo(result.folder / "sweep.html")
    if result.error is not None:
        raise result.error
