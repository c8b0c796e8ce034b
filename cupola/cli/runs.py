"""`cupola runs`."""

from pathlib import Path

import click

from cupola.cli.options import emit, examples, json_option


@click.command(epilog=examples("cupola runs", "cupola runs --in /data/runs --json"))
@click.option(
    "--in", "folder", type=click.Path(path_type=Path), help="Where to look (default: runs, or CUPOLA_RUNS)."
)
@json_option
def command(folder: Path | None, as_json: bool) -> None:
    """List the runs and how far they are."""
    from cupola.paths import runs_root
    from cupola.pipeline.listing import list_runs

    rows = list_runs(folder or runs_root())
    if as_json:
        emit({"runs": rows})
        return
    if not rows:
        click.echo(f"no runs in {folder or runs_root()}")
    for row in rows:
        stages = (
            ", ".join(f"{stage['name']} {stage['status']}" for stage in row["stages"])
            or "nothing trained yet"
        )
        bits = next(
            (s["heldout_bits_per_byte"] for s in reversed(row["stages"]) if s["heldout_bits_per_byte"]), None
        )
        figure = f"  {bits:.3f} bits per byte held out" if bits else ""
        stages = "DAMAGED" if "error" in row and not row["stages"] else stages
        origin = f"  (begins with {row['begins_with']})" if "begins_with" in row else ""
        click.echo(f"{row['path']}: {stages}{figure}{origin}")
        if "error" in row:
            click.echo(f"  {row['error']}")
