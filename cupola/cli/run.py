"""`cupola run`."""

from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option, load_recipe, position, recipe_argument, set_option
from cupola.display import ConsoleDisplay
from cupola.paths import runs_root


@click.command(
    epilog=examples(
        "cupola run recipes/quickstart.yaml",
        "cupola run recipes/quickstart.yaml --set stages.pretrain.tokens=4M --out runs/longer",
        "cupola run recipes/quickstart.yaml --until pretrain --json",
        "cupola run recipes/quickstart.yaml --until pretrain --stop-at 25%",
        "cupola run assistant.yaml --from sft             # sft and what follows again; the old is kept",
        "cupola run assistant.yaml --from sft --until sft",
    )
)
@recipe_argument
@set_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="The run's folder (default runs/NAME)."
)
@click.option(
    "--from", "anew_from", metavar="STAGE", help="Train this stage and those after it anew; the old are kept."
)
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option(
    "--stop-at",
    metavar="AMOUNT",
    help="Pause the last stage at 25%, '1M tokens' or '500 steps' of it, schedules unchanged.",
)
@click.option("--no-check", is_flag=True, help="Skip the dry run before the first start.")
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    anew_from: str | None,
    until: str | None,
    stop_at: str | None,
    no_check: bool,
    as_json: bool,
) -> None:
    """Do everything RECIPE says, from corpus to trained model; go on where it was interrupted.

    What is done and has not changed is not done again. Ctrl-C finishes the step under way, saves and stops.
    --from sets the stages aside that it trains anew, under a name with the time, and with them what came of
    them; stages before it have to be finished. What --stop-at paused, the same command without it goes on
    with, as if it had never stopped.
    With --json, `status` says done, paused, interrupted or failed, and each stage has its own.
    """

    pause = None if stop_at is None else position(stop_at, "--stop-at")
    loaded = load_recipe(recipe, overrides)

    try:
        from cupola.pipeline.run import run
    except KeyboardInterrupt:  # loading torch takes seconds
        if as_json:
            emit({"run": str(out or runs_root() / loaded.name), "status": "interrupted", "stages": []})
        raise
    report = run(loaded, out, until, ConsoleDisplay(), not no_check, pause, anew_from)
    if as_json:
        emit(report.as_json())
    if report.error is not None:
        raise report.error
