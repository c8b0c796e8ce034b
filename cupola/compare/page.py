"""Tables for the terminal and the self-contained page of a comparison or a sweep."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupola.compare.plots import comparison_svgs, sweep_svg
from cupola.compare.results import RunResult, Spread, VariantResult
from cupola.display import count, duration
from cupola.report.page import page_template
from cupola.report.plots import palette_css

if TYPE_CHECKING:
    from cupola.compare.branches import BranchComparison
    from cupola.compare.comparing import Comparison
    from cupola.compare.sweeping import Sweep

HERE = Path(__file__).parent
COLUMNS = (
    "variant",
    "seeds",
    "parameters",
    "tokens",
    "FLOPs",
    "seconds",
    "final loss",
    "held-out",
    "to the first",
)
NOTES = (
    "Held-out: bits per byte of all the text that trained neither model nor tokenizer, mean ± standard"
    " deviation over the seeds that are done. Final loss: nats per token, mean over the last 5% of the last"
    " stage. To the first: mean difference of held-out from the first variant, seed by seed, ± its standard"
    " deviation.",
    "FLOPs: forward and backward of the model, by the length of the rows. Seconds: of training alone, without"
    " evaluations and saving; runs that shared the machine (--jobs) took longer than one alone.",
)


STAGE_NOTES = (
    "Held-out: bits per byte of what a stage is judged by, text or answers; by source it is the same text for"
    " every stage of a run, so that what is forgotten shows. Final loss: mean over the last 5% of the stage,"
    " of its own objective. Time: of training alone, without evaluations and saving.",
)


def comparison_rows(variants: Sequence[VariantResult]) -> list[list[str]]:
    """A row of text a variant, under `COLUMNS`."""
    return [_row(variant, variants[0]) for variant in variants]


def _row(variant: VariantResult, first: VariantResult) -> list[str]:
    cost = {name: variant.spread(name) for name in ("parameters", "tokens", "flops", "seconds")}
    seeds = (
        f"{len(variant.done)}"
        if len(variant.done) == len(variant.runs)
        else (f"{len(variant.done)} of {len(variant.runs)}")
    )
    return [
        variant.name,
        seeds,
        count(cost["parameters"].mean) if cost["parameters"] else "–",
        count(cost["tokens"].mean) if cost["tokens"] else "–",
        f"{cost['flops'].mean:.3g}" if cost["flops"] else "–",
        duration(cost["seconds"].mean) if cost["seconds"] else "–",
        _with_deviation(variant.spread("final_loss")),
        _with_deviation(variant.spread("bits_per_byte")),
        "–" if variant is first else _difference(variant, first),
    ]


def _with_deviation(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return "–"
    text = f"{spread.mean:{sign}.3f}"
    return text if spread.deviation is None else f"{text} ± {spread.deviation:.3f}"


def _difference(variant: VariantResult, first: VariantResult) -> str:
    base, difference = first.spread("bits_per_byte"), variant.difference(first)
    if difference is None or base is None:
        return "–"
    return f"{_with_deviation(difference, '+')} ({difference.mean / base.mean:+.1%})"


def comparison_page(comparison: "Comparison") -> str:
    """The page of a comparison, as text."""
    svgs = comparison_svgs(comparison.variants, standalone=False)
    return page_template("comparison.html", HERE).render(
        palette=palette_css(),
        kind="comparison",
        name=comparison.folder.resolve().name,
        lead="",
        columns=COLUMNS,
        rows=comparison_rows(comparison.variants),
        notes=NOTES,
        cautions=comparison.cautions,
        figures=list(svgs.values()),
        runs=[
            {
                "name": f"{run.planned.variant}, seed {run.planned.seed}",
                "status": run.status,
                "why": run.why,
                "place": f"runs/{run.folder.name}",
                "figure": _bits(run.figures["bits_per_byte"]),
            }
            for run in comparison.runs
        ],
        settings=[
            (variant.name, [_command(run, comparison.until) for run in variant.runs])
            for variant in comparison.variants
        ],
        not_counted=len(comparison.others),
    )


def branches_page(comparison: "BranchComparison", svg: str) -> str:
    """The page of a comparison of stages, as text."""
    return page_template("comparison.html", HERE).render(
        palette=palette_css(),
        kind="comparison of stages",
        name=comparison.folder.resolve().name,
        lead="",
        columns=comparison.columns,
        rows=comparison.rows,
        notes=STAGE_NOTES,
        cautions=comparison.cautions,
        figures=[svg] if svg else [],
        runs=[
            {
                "name": branch.label,
                "status": branch.status,
                "why": "",
                "place": str(branch.run),
                "figure": _bits(branch.heldout_bits_per_byte),
            }
            for branch in comparison.branches
        ],
        settings=[],
        not_counted=0,
    )


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _command(run: RunResult, until: str | None) -> str:
    """What trains a run again, in a folder of its own: its recipe down to the seed and the name."""
    planned = run.planned
    settings = [*planned.overrides, *planned.settings, f"seed={planned.seed}", f"name={run.folder.name}"]
    words = ["cupola", "run", planned.source, *(w for setting in settings for w in ("--set", setting))]
    return shlex.join([*words, *(["--until", until] if until else [])])


def sweep_columns(sweep: "Sweep") -> list[str]:
    """The value, then a column a rung."""
    return [sweep.key, *(f"after {rung.title}" for rung in sweep.rungs), "state"]


def sweep_rows(sweep: "Sweep") -> list[list[str]]:
    """A row of text a trial, under `sweep_columns`."""
    rows = []
    for number, trial in enumerate(sweep.trials):
        figures = [_bits(rung.figures.get(number)) for rung in sweep.rungs]
        state = "best" if number == sweep.best else sweep.state(number)
        rows.append([f"{trial:g}", *figures, state])
    return rows


def sweep_picture(sweep: "Sweep", standalone: bool) -> str:
    """Held-out bits per byte against the value, a line a rung."""
    rungs = [
        (rung.title, {sweep.trials[number]: figure for number, figure in rung.figures.items()})
        for rung in sweep.rungs
    ]
    best = None if sweep.best is None else sweep.trials[sweep.best]
    return sweep_svg(sweep.key, rungs, best, sweep.log, standalone)


def sweep_page(sweep: "Sweep") -> str:
    """The page of a sweep, as text."""
    runs: list[dict[str, Any]] = [
        {
            "name": f"{sweep.key}={value:g}",
            "status": sweep.state(number),
            "why": sweep.failures.get(number, ""),
            "place": f"runs/{sweep.places[number]}",
            "figure": _bits(sweep.last_figure(number)),
        }
        for number, value in enumerate(sweep.trials)
    ]
    return page_template("comparison.html", HERE).render(
        palette=palette_css(),
        kind="sweep",
        name=sweep.folder.resolve().name,
        lead=sweep.verdict,
        columns=sweep_columns(sweep),
        rows=sweep_rows(sweep),
        notes=sweep.notes,
        cautions=sweep.cautions,
        figures=[svg] if (svg := sweep_picture(sweep, standalone=False)) else [],
        runs=runs,
        settings=[],
        not_counted=len(sweep.others),
    )
