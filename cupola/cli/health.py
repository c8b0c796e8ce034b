"""`cupola health`."""

from typing import Any

import click

from cupola.cli.options import emit, examples, json_option

COLUMNS = {
    "residual_rms": "residual",
    "mixer_rms": "mixer",
    "feedforward_rms": "feed-fwd",
    "attention_logit_max": "score",
    "dead_units": "dead",
    "dead_expert_units": "dead",
    "idle_experts": "idle",
    "decay_min": "decay from",
    "decay_max": "to",
    "state_rms": "state",
    "gradient_norm": "gradient",
    "update_ratio": "update",
}
"""Statistic -> its column, in this order; those that a model does not have are left out."""
SHARES = ("dead_units", "dead_expert_units", "idle_experts")


@click.command(epilog=examples("cupola health runs/quickstart", "cupola health quickstart --stage midtrain"))
@click.argument("run")
@click.option("--stage", metavar="NAME", help="The stage (default: the last that was looked at).")
@json_option
def command(run: str, stage: str | None, as_json: bool) -> None:
    """The last look at the numbers inside the model of RUN: a line for each layer.

    RMS of the residual stream after the layer and of what its mixer and its feed-forward layer add; the
    largest attention score; hidden units that never fire; norm of the gradient; change of the weights in a
    step relative to them. docs/health.md says how to read it; the report has the curves.
    """
    from cupola.pipeline.listing import last_look

    look = last_look(run, stage)
    if as_json:
        emit(look)
        return
    click.echo(f"stage {look['stage']}, step {look['step']:,}, {look['tokens']:,} tokens")
    _print_table({name: look[name] for name in COLUMNS if look.get(name)})
    for fault in (look.get("faults") or {}).values():
        click.echo(f"! {fault}")


def _print_table(statistics: dict[str, dict[str, Any]]) -> None:
    places = sorted({place for values in statistics.values() for place in values}, key=_order)
    click.echo(f"{'':<16}" + "".join(f"{COLUMNS[name]:>11}" for name in statistics))
    for place in places:
        cells = (_cell(name, place, values) for name, values in statistics.items())
        click.echo(f"{place.replace('_', ' '):<16}" + "".join(f"{cell:>11}" for cell in cells))


def _order(place: str) -> tuple[int, str]:
    """As the tokens pass through them."""
    first = ("embedding", "embedding_norm", "positions")
    return (0 if place in first else 1 if place.startswith("layer_") else 2), place


def _cell(name: str, place: str, values: dict[str, Any]) -> str:
    if place not in values:
        return ""
    value = values[place]
    if value is None:
        return "not finite"
    return f"{value:.1%}" if name in SHARES else f"{value:.3g}"
