"""`cupola checkpoint`."""

from pathlib import Path
from typing import Any

import click

from cupola.cli.options import emit, examples, json_option
from cupola.display import ConsoleDisplay, count

STATES = {True: "verified", False: "DAMAGED", None: "not read"}


@click.group(
    epilog=examples(
        "cupola checkpoint list runs/quickstart", "cupola checkpoint verify runs/quickstart --json"
    )
)
def command() -> None:
    """List or verify the checkpoints of a run."""


@command.command("list", epilog=examples("cupola checkpoint list runs/quickstart --json"))
@click.argument("run")
@json_option
def list_(run: str, as_json: bool) -> None:
    """List the checkpoints of RUN; names and sizes of their files are checked, contents by `verify`."""
    _report(run, contents=False, as_json=as_json)


@command.command("verify", epilog=examples("cupola checkpoint verify runs/quickstart"))
@click.argument("run")
@json_option
def verify(run: str, as_json: bool) -> None:
    """Compare every byte of RUN's checkpoints with the SHA-256 written; exit status 1 if one is damaged."""
    _report(run, contents=True, as_json=as_json)


def _report(run: str, contents: bool, as_json: bool) -> None:
    from cupola.errors import CupolaError
    from cupola.pipeline.folder import find_run, trained_again
    from cupola.pipeline.listing import list_checkpoints

    rows = list_checkpoints(run, contents, ConsoleDisplay())
    damaged = {Path(row["path"]): row["error"] for row in rows if "error" in row}
    if as_json:
        emit({"checkpoints": rows})
    else:
        _print(rows)
    if damaged and contents:
        first, *rest = damaged.values()
        others = f"; {len(rest)} more checkpoints are damaged" if rest else ""
        raise CupolaError(first + others, trained_again(find_run(run), list(damaged)))


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        click.echo("no checkpoints yet")
        return
    click.echo(f"{'stage':<12} {'step':>7} {'global':>7} {'tokens':>8}  {'contents':<8} path")
    for row in rows:
        state = STATES[row["verified"]]
        step = f"{row['step']:>7} {_or_dash(row['global_step']):>7} {count(row['tokens'] or 0):>8}"
        click.echo(f"{row['stage']:<12} {step}  {state:<8} {row['path']}")


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
