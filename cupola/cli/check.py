"""`cupola check`."""

import click

from cupola.cli.options import emit, examples, json_option, load_recipe, recipe_argument, set_option
from cupola.display import ConsoleDisplay, duration, size


@click.command(
    epilog=examples(
        "cupola check recipes/quickstart.yaml",
        "cupola check --no-data recipes/quickstart.yaml --set model.vocabulary=131072 --json",
    )
)
@recipe_argument
@set_option
@click.option("--no-data", is_flag=True, help="Gather nothing: random tokens, shapes, first loss and memory.")
@json_option
def command(recipe: str, overrides: tuple[str, ...], no_data: bool, as_json: bool) -> None:
    """Check RECIPE before spending on it: every stage validated, one batch of each run through the model.

    The first loss must be what the objective expects (ln V for a fresh model), one batch must be learnable,
    and memory and time are estimated from what was measured.
    """

    loaded = load_recipe(recipe, overrides)

    from cupola.models.table.trained import refuse_unknown
    from cupola.pipeline.decisions import decide
    from cupola.pipeline.memory import require_memory, running_out
    from cupola.pipeline.preflight import preflight
    from cupola.pipeline.prepare import prepare

    display = ConsoleDisplay()
    refuse_unknown(loaded)
    require_memory(loaded)
    prepared = None if no_data else prepare(loaded, display)
    vocabulary = prepared.vocabulary if prepared else loaded.model.rows(loaded.tokenizer.vocabulary)
    require_memory(loaded, vocabulary)
    with running_out("check"):
        decisions = decide(loaded, vocabulary, None, display)
        result = preflight(loaded, prepared, decisions, display)
    for warning in result.warnings:
        display.warn(warning)
    for note in result.notes:
        display.say(note)
    if as_json:
        emit(result.as_json())
        return
    click.echo(f"{'stage':<12} {'first loss':>10} {'expected':>9} {'peak memory':>12} {'time':>8}")
    for stage in result.stages:
        click.echo(
            f"{stage.name:<12} {stage.first_loss:>10.3f} {_loss(stage.expected_loss):>9}"
            f" {size(stage.peak_bytes):>12} {duration(stage.seconds):>8}"
        )
    click.echo(f"order fingerprint: {result.order_fingerprint or 'none without data'}")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
