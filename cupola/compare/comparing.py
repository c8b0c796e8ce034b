"""`cupola compare`: do what is left of a grid of runs, then say what came of all of them.

Idempotent, as `cupola run` is: a run that is done is not done again, one that was stopped goes on, and a grid
that has changed keeps what it has in common with the old one. A finished run is taken as it is by its record:
text that has changed under its recipe since is not looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola import storage
from cupola.compare.fleet import Job, Outcome, horizon, run_jobs
from cupola.compare.folder import GroupFolder, is_done
from cupola.compare.page import comparison_page
from cupola.compare.plots import comparison_svgs
from cupola.compare.results import (
    RunResult,
    Spread,
    VariantResult,
    by_variant,
    cautions,
    read_run,
)
from cupola.compare.variants import Planned
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.recipe.schema import Recipe

FIGURES = ("parameters", "tokens", "flops", "seconds", "final_loss", "bits_per_byte")


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        until: the last stage that counts, where not all do.
        reused: runs that were done before.
        others: folders of runs that this grid does not have; they are not counted.
    """

    folder: Path
    variants: list[VariantResult]
    cautions: list[str]
    until: str | None
    reused: int
    others: list[str]

    @property
    def runs(self) -> list[RunResult]:
        """Every run of the grid."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def error(self) -> CupolaError | None:
        """What the command ends with where some run is not done."""
        missing = [run for run in self.runs if run.status != "done"]
        if not missing:
            return None
        first = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return CupolaError(
            f"{len(missing)} of {len(self.runs)} runs are not done: {first.planned.variant}, seed"
            f" {first.planned.seed}: {first.why or 'unfinished'}{more}; the same command tries them again"
        )

    def as_json(self) -> dict[str, Any]:
        """`comparison.json`."""
        return {
            "comparison": str(self.folder),
            "status": "failed" if self.error else "done",
            "variants": [_variant_json(variant, self.variants[0]) for variant in self.variants],
            "reused": self.reused,
            "not_counted": self.others,
            "cautions": self.cautions,
        }


def _variant_json(variant: VariantResult, first: VariantResult) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": variant.name,
        "recipe": variant.source,
        "settings": list(variant.settings),
    }
    for figure in FIGURES:
        facts[figure] = _spread_json(variant.spread(figure))
    facts["to_first"] = None if variant is first else _spread_json(variant.difference(first))
    facts["runs"] = [run.as_json() for run in variant.runs]
    return facts


def _spread_json(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else vars(spread)


def compare(
    planned: Sequence[Planned], out: Path, until: str | None, jobs: int, display: Display
) -> Comparison:
    """Run what is not done of a grid, and write table, page and pictures.

    Raises:
        InputError: the folder is something else's, or a recipe has no stage `until`; nothing was run.
        Interrupted: by a signal; every run under way was saved.
    """
    for run in planned:
        require_stage(run.variant, run.recipe, until)
    folder = GroupFolder(out, "comparison")
    with folder.lock():
        folder.write_plan({"until": until, "runs": [[p.variant, p.seed, p.identity] for p in planned]})
        left = [run for run in planned if not is_done(folder.place(run), run.recipe, until)]
        others = folder.others(list(planned))
        reused = len(planned) - len(left)
        display.say(f"comparison of {len(planned)} runs in {out}: {reused} are done, {len(left)} to do")
        if others:
            display.say(f"{len(others)} runs there are not of this grid and are not counted")
        outcomes: dict[Path, Outcome] = {}
        try:
            outcomes = run_jobs([job_of(folder, run, until) for run in left], jobs, display) if left else {}
        finally:  # also of what an interruption leaves
            results = []
            for run in planned:
                place = folder.place(run)
                results.append(read_run(run, place, until, outcomes.get(place, Outcome("done")).why))
            comparison = Comparison(out, by_variant(results), cautions(results), until, reused, others)
            write_comparison(comparison)
        for line in comparison.cautions:
            display.warn(line)
    return comparison


def require_stage(variant: str, recipe: Recipe, until: str | None) -> None:
    """Refuse a recipe without the stage that is asked for."""
    if until is not None and until not in recipe.stages:
        raise InputError(
            f"variant {variant}: --until {until}: no such stage; the recipe has {', '.join(recipe.stages)}"
        )


def job_of(
    folder: GroupFolder, run: Planned, until: str | None, options: Sequence[str] = (), share: float = 1.0
) -> Job:
    """What does a run."""
    path = folder.write_recipe(run)
    stop = ["--until", until] if until else []
    return Job(
        title=f"{run.variant}, seed {run.seed}",
        recipe=path,
        folder=path.with_suffix(""),
        options=(*stop, *options),
        total=horizon(run.recipe, until, share),
    )


def write_comparison(comparison: Comparison) -> None:
    """`comparison.json`, `comparison.html`, and a picture for each axis."""
    out = comparison.folder
    storage.write_json(out / "comparison.json", comparison.as_json())
    for axis, svg in comparison_svgs(comparison.variants, standalone=True).items():
        storage.write_text(out / f"loss-by-{axis.lower()}.svg", svg)
    storage.write_text(out / "comparison.html", comparison_page(comparison))
