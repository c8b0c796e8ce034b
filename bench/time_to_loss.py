"""Tokens, FLOPs and seconds of training to one held-out loss, from nanoGPT's way of training to ours.

    .venv/bin/python -m bench.time_to_loss                # hours; the same command goes on after a stop
    .venv/bin/python -m bench.time_to_loss --tokens 500k  # the same race over a quarter of the way
    .venv/bin/python -m bench.time_to_loss --tune 5e-4..8e-3 --only Muon   # find its learning rate

The first contestant of `time_to_loss.yaml` trains for `--tokens`; what it reaches on all held-out text, the
mean over the seeds, is the target. The others, each with its schedule drawn over shorter horizons, are given
the shortest of `--share` that reaches it; between that horizon and the one before, tokens, FLOPs and seconds
at the target are read off the straight line of loss against log(cost). Runs are those of `cupola compare`,
one at a time. Seconds are of training, without evaluation and saving: of each size of batch and row the
median step's, times the steps, so that what else the machine does for a minute of the hour does not count.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from cupola.compare.comparing import compare
from cupola.compare.halving import parse_over
from cupola.compare.results import VariantResult
from cupola.compare.sweeping import plan_sweep, sweep
from cupola.compare.variants import Group, plan_grid
from cupola.display import ConsoleDisplay, Display
from cupola.json_lines import Record, read_whole
from cupola.recipe.quantity import Quantity

FILE = Path(__file__).with_name("time_to_loss.yaml")
COSTS = ("tokens", "flops", "seconds")
RATE = "stages.pretrain.learning_rate.peak"
TRIALS = 5
TUNED_AT_ONCE = 2
"""Trials beside each other: no seconds are read off them."""


@dataclass(frozen=True)
class Run:
    """A contestant over one horizon; means over the seeds.

    Attributes:
        bits: held-out bits per byte at its end, by seed.
    """

    contestant: str
    horizon: int
    bits: list[float]
    tokens: float
    flops: float
    seconds: float

    @property
    def mean(self) -> float:
        """Held-out bits per byte."""
        return statistics.fmean(self.bits)


@dataclass(frozen=True)
class Finish:
    """What the target cost a contestant; None where no horizon reached it.

    Attributes:
        runs: shortest first; the last one reached the target, if any did.
    """

    contestant: str
    runs: list[Run]
    tokens: float | None
    flops: float | None
    seconds: float | None


def contestants(path: Path) -> tuple[str, list[str], dict[str, list[str]]]:
    """The recipe, the settings of all, and the settings of each, those of the ones above it included; as
    `--set` takes them."""
    document = yaml.safe_load(path.read_text())
    found: dict[str, list[str]] = {}
    so_far: dict[str, Any] = {}
    for name, changes in document["contestants"].items():
        so_far = {**so_far, **changes}
        found[name] = _settings(so_far)
    return document["recipe"], _settings(document["common"]), found


def _settings(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


class Race:
    """Runs contestants; what has been run before is read.

    Args:
        common: settings of all, as `--set` takes them.
    """

    def __init__(self, recipe: str, common: list[str], seeds: list[int], out: Path, display: Display) -> None:
        self.recipe, self.common, self.seeds, self.out, self.display = recipe, common, seeds, out, display

    def run(self, contestant: str, settings: list[str], horizon: int) -> Run:
        """One contestant over one horizon, all seeds."""
        group = Group(contestant, (*settings, f"stages.pretrain.tokens={horizon}"))
        planned = plan_grid([self.recipe], [group], [], self.seeds, self.common)
        folder = self.out / f"{contestant.replace(' ', '-')}-{horizon}"
        result = compare(planned, folder, None, 1, self.display)
        if result.error is not None:
            raise result.error
        return _run_of(contestant, horizon, result.variants[0])

    def finish(self, contestant: str, settings: list[str], horizons: list[int], target: float) -> Finish:
        """Longer and longer horizons until one reaches the target."""
        runs = []
        for horizon in horizons:
            runs.append(self.run(contestant, settings, horizon))
            if runs[-1].mean <= target:
                return Finish(contestant, runs, *(cost_at(target, runs, cost) for cost in COSTS))
        return Finish(contestant, runs, None, None, None)


def tune(race: Race, contestant: str, settings: list[str], horizon: int, span: str) -> str:
    """The verdict of `cupola sweep` on a contestant's learning rate: five values, half of which go on."""
    over = parse_over(f"{RATE}={span}:log", TRIALS)
    overrides = (*race.common, *settings, f"stages.pretrain.tokens={horizon}")
    stage, planned = plan_sweep(race.recipe, over, 2, overrides, None)
    folder = race.out / f"{contestant.replace(' ', '-')}-{horizon}-sweep"
    result = sweep(race.recipe, over, 2, stage, planned, folder, TUNED_AT_ONCE, race.display)
    if result.error is not None:
        raise result.error
    return result.verdict


def _run_of(contestant: str, horizon: int, variant: VariantResult) -> Run:
    def mean(figure: str) -> float:
        spread = variant.spread(figure)
        assert spread is not None
        return spread.mean

    bits = [run.figures["bits_per_byte"] for run in variant.done]
    seconds = statistics.fmean(
        training_seconds(
            row for path in run.folder.glob("stages/*/metrics.jsonl") for row in read_whole(path)
        )
        for run in variant.done
    )
    known = [value for value in bits if value is not None]
    return Run(contestant, horizon, known, mean("tokens"), mean("flops"), seconds)


def training_seconds(rows: Iterable[Record]) -> float:
    """Of each size of batch and row, the median step's seconds, times the steps."""
    by_shape: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        by_shape.setdefault((row["batch_tokens"], row["sequence_length"]), []).append(row["seconds"])
    return sum(len(steps) * statistics.median(steps) for steps in by_shape.values())


def cost_at(target: float, runs: list[Run], cost: str) -> float:
    """What the target costs on the line of loss against log(cost) through the last two runs.

    Args:
        runs: the last one reached the target; of one run alone it is that run's cost.
    """
    last = runs[-1]
    if len(runs) == 1 or runs[-2].mean <= last.mean:
        return float(getattr(last, cost))
    before = runs[-2]
    share = (before.mean - target) / (before.mean - last.mean)
    low, high = math.log(getattr(before, cost)), math.log(getattr(last, cost))
    return math.exp(low + (high - low) * share)


def show(finishes: list[Finish], target: float) -> None:
    """A line for each contestant: what it took, relative to the first."""
    click.echo(f"target: {target:.3f} held-out bits per byte, what {finishes[0].contestant} reaches\n")
    click.echo("| | tokens | FLOPs | seconds | to the first | horizon run | bits per byte, by seed |")
    click.echo("|---|---|---|---|---|---|---|")
    first = finishes[0].seconds
    for finish in finishes:
        last = finish.runs[-1]
        bits = ", ".join(f"{value:.3f}" for value in last.bits)
        if finish.tokens is None or finish.flops is None or finish.seconds is None:
            click.echo(f"| {finish.contestant} | not reached | | | | {last.horizon:,} | {bits} |")
            continue
        ratio = f"{finish.seconds / first:.2f}" if first else ""
        click.echo(
            f"| {finish.contestant} | {finish.tokens:,.0f} | {finish.flops:.2e} | {finish.seconds:.0f} |"
            f" {ratio} | {last.horizon:,} | {bits} |"
        )


@click.command()
@click.option("--tokens", default="2M", show_default=True, help="The first contestant's horizon.")
@click.option(
    "--share",
    "shares",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    default=(0.25, 0.35, 0.5, 0.7, 1.0),
    show_default=True,
    help="Of that horizon, for the others.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--only", multiple=True, help="Of the contestants after the first, only these.")
@click.option(
    "--tune", "span", metavar="LOW..HIGH", help="Instead of the race, sweep the learning rates of --only."
)
@click.option("--contestants", "path", type=click.Path(path_type=Path), default=FILE, show_default=False)
@click.option("--set", "overrides", multiple=True, help="For all contestants.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/time-to-loss"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    tokens: str,
    shares: tuple[float, ...],
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    span: str | None,
    path: Path,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
) -> None:
    """Race the contestants to what the first one reaches."""
    recipe, common, entered = contestants(path)
    if unknown := sorted(set(only) - set(entered)):
        raise click.ClickException(f"--only {unknown[0]}: there are {', '.join(entered)}")
    whole = int(Quantity.parse(tokens).amount)
    race = Race(recipe, [*common, *overrides], list(seeds), out, ConsoleDisplay())
    if span is not None:
        for contestant in only or entered:
            click.echo(f"{contestant}: {tune(race, contestant, entered[contestant], whole, span)}")
        return
    (name, settings), *others = entered.items()
    first = race.run(name, settings, whole)
    finishes = [Finish(name, [first], first.tokens, first.flops, first.seconds)]
    horizons = [round(whole * share) for share in sorted(shares)]
    for other, own in others:
        if not only or other in only:
            finishes.append(race.finish(other, own, horizons, first.mean))
    if as_json:
        click.echo(json.dumps({"target": first.mean, "contestants": [asdict(f) for f in finishes]}))
    else:
        show(finishes, first.mean)


if __name__ == "__main__":
    command()
