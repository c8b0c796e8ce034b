"""`cupola compare`."""

from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option, set_option, show_table
from cupola.display import ConsoleDisplay
from cupola.errors import InputError
from cupola.paths import runs_root

PRETRAIN = "stages.pretrain"


@click.command(
    epilog=examples(
        f"cupola compare quickstart --vary {PRETRAIN}.optimizer=adamw,muon --seeds 3 --until pretrain",
        f"cupola compare quickstart --vary {PRETRAIN}.learning_rate=1e-3,3e-3 --vary model.width=128,256",
        "cupola compare quickstart --variant 'base: {}' --variant 'wide: {model.width: 384}'",
        "cupola compare recipes/quickstart.yaml recipes/mamba2.yaml --seeds 3 --until pretrain",
        "cupola compare runs/assistant:rl runs/assistant:more --json",
        "cupola compare runs/assistant",
    )
)
@click.argument("recipes", metavar="RECIPE...|RUN[:STAGE]...", nargs=-1, required=True)
@click.option("--vary", multiple=True, metavar="KEY=V1,V2", help="Every value of a setting; may be repeated.")
@click.option(
    "--variant",
    multiple=True,
    metavar="'NAME: {KEY: VALUE, ...}'",
    help="Several settings under one name; may be repeated.",
)
@click.option(
    "--variants",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A YAML file of variants, NAME: {KEY: VALUE, ...} each.",
)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds 1 to N (default: the recipe's own).")
@click.option(
    "--seed", "chosen", multiple=True, type=click.IntRange(min=0), help="This seed; may be repeated."
)
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder of all runs (default runs/NAME-comparison, of stages runs/NAME-stages).",
)
@click.option("--jobs", default=1, type=click.IntRange(min=1), show_default=True, help="Runs at once.")
@click.option("--until", metavar="STAGE", help="Compare after this stage.")
@json_option
def command(
    recipes: tuple[str, ...],
    vary: tuple[str, ...],
    variant: tuple[str, ...],
    files: tuple[Path, ...],
    seeds: int | None,
    chosen: tuple[int, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    jobs: int,
    until: str | None,
    as_json: bool,
) -> None:
    """Train variants of one or more RECIPEs and compare what they reach on held-out text.

    The variants are every recipe with every --variant with every value of each --vary, over the seeds. Each
    is an ordinary run in a folder of its own: what is done is not done again, what was interrupted goes on.
    Into the folder go comparison.html, comparison.json, and loss against tokens, FLOPs and seconds as SVG.

    Of stages that are trained already (RUN:STAGE; a RUN alone is all of its stages) it sets side by side what
    each is judged by, held-out text by source, length, time and lineage, and trains nothing.
    """
    given: dict[str, object] = {"--vary": vary, "--variant": variant, "--variants": files, "--set": overrides}
    given |= {"--seeds": seeds, "--seed": chosen, "--until": until}
    if _compared_stages(recipes, [option for option, value in given.items() if value], out, as_json):
        return
    from cupola.compare.variants import parse_groups, parse_vary, plan_grid

    if seeds is not None and chosen:
        raise InputError("--seeds and --seed exclude each other; say how many, or which")
    if len(set(chosen)) < len(chosen):
        raise InputError("--seed: a seed is given twice")
    which = list(range(1, seeds + 1)) if seeds else list(chosen) or None
    groups = parse_groups(variant, files)
    planned = plan_grid(recipes, groups, parse_vary(vary), which, overrides)

    from cupola.compare.comparing import compare
    from cupola.compare.page import COLUMNS, comparison_rows

    name = planned[0].recipe.name
    result = compare(planned, out or runs_root() / f"{name}-comparison", until, jobs, ConsoleDisplay())
    if as_json:
        emit(result.as_json())
    else:
        show_table(COLUMNS, comparison_rows(result.variants))
        click.echo(result.folder / "comparison.html")
    if result.error is not None:
        raise result.error


def _compared_stages(arguments: tuple[str, ...], options: list[str], out: Path | None, as_json: bool) -> bool:
    """Whether the arguments are stages of runs, which are then compared."""
    from cupola.compare.branches import chosen_stages, compare_stages

    stages = chosen_stages(arguments)
    if stages is None:
        return False
    if options:
        raise InputError(
            f"{options[0]}: is for recipes; what {arguments[0]} has trained is compared as it is"
        )
    folder = out or runs_root() / f"{stages[0][0].path.resolve().name}-stages"
    result = compare_stages(stages, folder, ConsoleDisplay())
    if as_json:
        emit(result.as_json())
        return True
    show_table(result.columns, result.rows)
    click.echo(result.folder / "comparison.html")
    return True
