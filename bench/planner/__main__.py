"""What the planner predicts of published runs, beside what was published: errors by group.

    .venv/bin/python -m bench.planner
    .venv/bin/python -m bench.planner --rows other_runs.json --json > scores.json
    .venv/bin/python -m bench.planner --cross-validate          # some minutes

For figures of time, `constant` is the mean error of a constant share of the peak, the median over the other
systems' rows, and `ranks` Spearman's correlation over a sweep of layouts. `--cross-validate` predicts the
step of each system's rows by constants fitted without them (`validation`).

`--json` prints `rows`, each with name, group, metric, published, predicted, low and high (and the
convention of a count of FLOPs), and `groups` with the errors in per cent. A row that can't be expressed, or
a metric that nothing predicts, has null and a reason. `flops_per_token` is what a row's utilisation and its
speed say together.
"""

import json
import statistics
from collections import Counter
from pathlib import Path

import click

from bench.planner.calculon import seconds
from bench.planner.rows import PUBLISHED, Row, read
from bench.planner.scoreboard import Group, Score, groups, scores
from bench.planner.validation import Constants, cross_validated, quantile, samples, seconds_of
from cupola.errors import CupolaError

WIDTH = 34


@click.command()
@click.option(
    "--rows", "path", type=click.Path(path_type=Path), default=PUBLISHED, help="Published rows, as JSON."
)
@click.option("--cross-validate", is_flag=True, help="Step times by constants fitted without each system.")
@click.option(
    "--calculon",
    type=click.Path(path_type=Path),
    help="Steps as this copy of calculon has them, beside ours.",
)
@click.option("--json", "as_json", is_flag=True, help="Every row and every group, as JSON.")
def main(path: Path, cross_validate: bool, calculon: Path | None, as_json: bool) -> None:
    """The planner beside published runs."""
    try:
        rows = read(path)
        if cross_validate:
            _cross_validate(rows, as_json)
            return
        if calculon is not None:
            _beside_calculon(rows, calculon)
            return
        found = scores(rows)
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
        f"{'constant':>10}{'ranks':>7}"
    )
    for group in together:
        if group.scored:
            click.echo(_line(group))
    click.echo("\nnot scored")
    for line in _reasons(found):
        click.echo(f"  {line}")


def _cross_validate(rows: list[Row], as_json: bool) -> None:
    """By group the mean error of the step with the shipped constants, with those fitted without its system,
    and of the constant share; then between what multiples of a prediction 90% lie."""
    held = cross_validated(samples(rows))
    if as_json:
        click.echo(json.dumps([one.as_json() for one in held], indent=1))
        return
    click.echo(f"{'group':{WIDTH}} {'rows':>6}{'shipped':>10}{'without':>10}{'constant':>10}")
    for group in dict.fromkeys(one.row.group for one in held):
        own = [one for one in held if one.row.group == group]
        means = [
            100 * statistics.fmean(abs(value - 1) for value in values)
            for values in zip(*((one.shipped, 1 / one.ratio, one.constant) for one in own), strict=True)
        ]
        click.echo(f"{group[:WIDTH]:{WIDTH}} {len(own):6}" + "".join(f"{mean:9.1f}%" for mean in means))
    for mixture in (False, True):
        ratios = [one.ratio for one in held if one.mixture is mixture]
        if ratios:
            low, high = quantile(ratios, 0.05), quantile(ratios, 0.95)
            click.echo(f"90% of {'mixtures' if mixture else 'others'} lie between {low:.2f} and {high:.2f}")


def _beside_calculon(rows: list[Row], path: Path) -> None:
    """By group the mean error of the step over the rows that calculon can express, its own and ours."""
    together: dict[str, list[tuple[float, float]]] = {}
    for one in samples(rows):
        if (theirs := seconds(path, one)) is not None:
            errors = abs(theirs / one.seconds - 1), abs(seconds_of(one, Constants()) / one.seconds - 1)
            together.setdefault(one.row.group, []).append(errors)
    click.echo(f"{'group':{WIDTH}} {'rows':>6}{'calculon':>10}{'ours':>10}")
    for group, errors_of in together.items():
        means = [100 * statistics.fmean(values) for values in zip(*errors_of, strict=True)]
        click.echo(f"{group[:WIDTH]:{WIDTH}} {len(errors_of):6}{means[0]:9.1f}%{means[1]:9.1f}%")


def _line(group: Group) -> str:
    name = group.group if len(group.group) <= WIDTH else f"{group.group[: WIDTH - 3]}..."
    scored = f"{group.scored}/{group.rows}"
    return (
        f"{name:{WIDTH}} {group.metric:24} {scored:>9}{group.mean:8.2f}%{group.worst:8.2f}%"
        f"{group.bias:+8.2f}%{group.inside:7.0f}%"
        f"{'' if group.constant is None else f'{group.constant:9.1f}%':>10}"
        f"{'' if group.ranked is None else f'{group.ranked:.2f}':>7}"
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
