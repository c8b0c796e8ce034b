"""What the planner predicts of published runs, beside what was published: errors by group.

    .venv/bin/python -m bench.planner
    .venv/bin/python -m bench.planner --rows other_runs.json --json > scores.json

`--json` prints `rows`, each with name, group, metric, published, predicted, low and high (and the
convention of a count of FLOPs), and `groups` with the errors in per cent. A row that can't be expressed, or
a metric that nothing predicts, has null and a reason. `flops_per_token` is what a row's utilisation and its
speed say together.
"""

import json
from collections import Counter
from pathlib import Path

import click

from bench.planner.rows import PUBLISHED, read
from bench.planner.scoreboard import Group, Score, groups, scores
from cupola.errors import CupolaError

WIDTH = 34


@click.command()
@click.option(
    "--rows", "path", type=click.Path(path_type=Path), default=PUBLISHED, help="Published rows, as JSON."
)
@click.option("--json", "as_json", is_flag=True, help="Every row and every group, as JSON.")
def main(path: Path, as_json: bool) -> None:
    """The planner beside published runs."""
    try:
        found = scores(read(path))
    except CupolaError as fault:
        click.echo(f"error: {fault}", err=True)
        raise SystemExit(fault.exit_status) from fault
    together = groups(found)
    if as_json:
        made = {
            "rows": [score.as_json() for score in found],
            "groups": [group.as_json() for group in together],
        }
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(
        f"{'group':{WIDTH}} {'metric':24} {'scored':>9}{'mean':>9}{'worst':>9}{'bias':>9}{'inside':>8}"
    )
    for group in together:
        if group.scored:
            click.echo(_line(group))
    click.echo("\nnot scored")
    for line in _reasons(found):
        click.echo(f"  {line}")


def _line(group: Group) -> str:
    name = group.group if len(group.group) <= WIDTH else f"{group.group[: WIDTH - 3]}..."
    scored = f"{group.scored}/{group.rows}"
    return (
        f"{name:{WIDTH}} {group.metric:24} {scored:>9}{group.mean:8.2f}%{group.worst:8.2f}%"
        f"{group.bias:+8.2f}%{group.inside:7.0f}%"
    )


def _reasons(found: list[Score]) -> list[str]:
    """Why values have no prediction: the metrics that nothing predicts, and the other reasons with the
    rows."""
    waiting = Counter(score.metric for score in found if score.reason == "not predicted yet")
    lines = (
        [f"{len(waiting)} metrics are not predicted yet: {', '.join(map(str, waiting))}"] if waiting else []
    )
    rows: dict[str, dict[str, None]] = {}
    for score in found:
        if score.reason and score.reason != "not predicted yet":
            rows.setdefault(score.reason, {})[score.name] = None
    return lines + [f"{reason}: {', '.join(names)}" for reason, names in rows.items()]


if __name__ == "__main__":
    main()
