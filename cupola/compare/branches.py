"""`cupola compare RUN:STAGE ...`: finished stages side by side, such as two alignments of one base.

Nothing is trained. Every figure is from the records of the runs: what each stage is judged by, held-out bits
per byte of each source (which also show what an alignment has forgotten), length and time, and the stages
that its weights have come through.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupola import json_lines, storage
from cupola.compare.folder import GroupFolder
from cupola.compare.page import branches_page
from cupola.compare.plots import Points, Series, series_svg
from cupola.display import Display, count, duration
from cupola.errors import InputError
from cupola.pipeline.folder import RunFolder, StageFolder, find_run
from cupola.pipeline.origin import recipe_of
from cupola.recipe.origin import BEGIN
from cupola.recipe.schema import Recipe
from cupola.report.records import StageRecords, finite_figures, read_records

TRAINING = {"loss": "training loss (nats per token, or of pairs)", "reward": "reward", "accuracy": "accuracy"}
"""What is drawn of the metrics of each step, where a stage has it -> its title."""
MOST_PANELS = 6


@dataclass(frozen=True)
class Branch:
    """One stage of a run.

    Attributes:
        lineage: what its weights came through, the first first and itself last.
        tokens: of the stage; of one that answers questions, these.
        heldout: source -> bits per byte at its end.
        metrics: what its objective is judged by, at its end.
        rewards: name -> weight of what its own answers were rewarded by; of a stage that samples none, none.
    """

    label: str
    run: Path
    stage: str
    status: str
    objective: str
    lineage: list[str]
    unit: str
    tokens: int
    steps: int
    seconds: float
    final_loss: float | None
    heldout_bits_per_byte: float | None
    heldout: dict[str, float]
    metrics: dict[str, float]
    rewards: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For `comparison.json`."""
        return {**vars(self), "run": str(self.run)}


@dataclass(frozen=True)
class BranchComparison:
    """What came of it."""

    folder: Path
    branches: list[Branch]
    cautions: list[str]

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        found = [branch.as_json() for branch in self.branches]
        return {"comparison": str(self.folder), "stages": found, "cautions": self.cautions}

    @property
    def columns(self) -> list[str]:
        """The table's: a figure a row, a stage a column."""
        return ["", *(branch.label for branch in self.branches)]

    @property
    def rows(self) -> list[list[str]]:
        """Under `columns`."""
        rows = [
            ["weights came through", *(" > ".join(branch.lineage) for branch in self.branches)],
            ["objective", *(branch.objective for branch in self.branches)],
            ["length", *(f"{count(branch.tokens)} {branch.unit}" for branch in self.branches)],
            ["steps", *(f"{branch.steps:,}" for branch in self.branches)],
            ["time", *(duration(branch.seconds) for branch in self.branches)],
            ["final loss", *(_figure(branch.final_loss) for branch in self.branches)],
            ["held-out", *(_figure(branch.heldout_bits_per_byte) for branch in self.branches)],
        ]
        if any(branch.rewards for branch in self.branches):
            rows.append(["rewards", *(_names(branch.rewards) for branch in self.branches)])
        for key in dict.fromkeys(key for branch in self.branches for key in branch.metrics):
            rows.append([key, *(_figure(branch.metrics.get(key)) for branch in self.branches)])
        for source in dict.fromkeys(source for branch in self.branches for source in branch.heldout):
            figures = [_figure(branch.heldout.get(source)) for branch in self.branches]
            rows.append([f"bits per byte of {source}", *figures])
        return rows


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value > 1 and value == int(value) else f"{value:.3f}"


def _names(rewards: dict[str, float]) -> str:
    named = [name if weight == 1 else f"{weight:g} x {name}" for name, weight in rewards.items()]
    return ", ".join(named) or "–"


Chosen = list[tuple[RunFolder, StageFolder]]


def chosen_stages(arguments: Sequence[str]) -> Chosen | None:
    """The stages that arguments name, as RUN:STAGE or, all that were trained in it, RUN; None where they are
    recipes.

    Raises:
        InputError: some are runs and some are not, a run has no such stage, or one is named twice.
    """
    runs = [argument for argument in arguments if _names_a_run(argument)]
    if not runs:
        return None
    if others := [argument for argument in arguments if argument not in runs]:
        raise InputError(f"{others[0]}: is no stage of a run (RUN:STAGE), and {runs[0]} is; compare one kind")
    found: Chosen = []
    for argument in arguments:
        path, name = (argument, "") if Path(argument).is_dir() else argument.rsplit(":", 1)
        run = find_run(path)
        there = [stage for stage in run.stages() if stage.name != BEGIN and stage.facts()]
        named = [stage for stage in there if name in ("", stage.name)]
        if not named:
            names = ", ".join(stage.name for stage in there) or "none"
            raise InputError(f"{argument}: no stage {name or 'was trained'} there; {run.path} has {names}")
        found += [(run, stage) for stage in named]
    places = [stage.path.resolve() for _, stage in found]
    for (run, stage), place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{run.path}:{stage.name} is named twice; name each stage once")
    return found


def _names_a_run(argument: str) -> bool:
    path = Path(argument).expanduser()
    if path.exists():
        return RunFolder(path).begun
    return ":" in argument


def compare_stages(chosen: Chosen, out: Path, display: Display) -> BranchComparison:
    """Read them, and write table, page and picture.

    Raises:
        InputError: the folder is something else's.
    """
    one_run = len({run.path.resolve() for run, _ in chosen}) == 1
    records = {run.path: read_records(run.path) for run, _ in chosen}
    branches, series = [], []
    for run, stage in chosen:
        label = stage.name if one_run else f"{run.path.name}:{stage.name}"
        [known] = [each for each in records[run.path].stages if each.name == stage.name]
        branches.append(_branch(label, run, recipe_of(run), stage, known))
        series.append(_series(label, stage, known))
    comparison = BranchComparison(out, branches, _cautions([run for run, _ in chosen], branches))
    folder = GroupFolder(out, "comparison of stages")
    with folder.lock():
        folder.write_plan({"stages": [[str(branch.run), branch.stage] for branch in branches]})
        storage.write_json(out / "comparison.json", comparison.as_json())
        svg = {alone: series_svg(series, _titles(series), alone) for alone in (True, False)}
        if svg[True]:
            storage.write_text(out / "metrics-by-step.svg", svg[True])
        storage.write_text(out / "comparison.html", branches_page(comparison, svg[False]))
    for line in comparison.cautions:
        display.warn(line)
    return comparison


def _branch(label: str, run: RunFolder, recipe: Recipe, stage: StageFolder, records: StageRecords) -> Branch:
    facts = stage.facts()
    settings = recipe.stages.get(stage.name)
    seconds = records.columns["seconds"]
    return Branch(
        label=label,
        run=run.path,
        stage=stage.name,
        status=str(facts.get("status")),
        objective=settings.objective if settings else "–",
        lineage=lineage(run, recipe, stage.name),
        unit="questions" if settings and settings.samples else "tokens",
        tokens=int(records.tokens),
        steps=int(facts.get("steps", records.steps)),
        seconds=float(facts.get("seconds", seconds[-1] if len(seconds) else 0.0)),
        final_loss=facts.get("final_loss"),
        heldout_bits_per_byte=facts.get("heldout_bits_per_byte"),
        heldout=records.heldout,
        metrics=finite_figures(facts.get("metrics") or {}),
        rewards=settings.policy.rewards if settings and settings.samples else {},
    )


def lineage(run: RunFolder, recipe: Recipe, stage: str) -> list[str]:
    """What the weights of a stage came through, from the seed, or from what the run began with."""
    found = [stage]
    while found[0] in recipe.stages and "weights" in recipe.stages[found[0]].carry:
        parent = recipe.parent_of(found[0])
        if parent is None:
            break
        found.insert(0, parent)
    if found[0] == BEGIN:
        origin = run.stage(0, BEGIN).facts().get("origin", {})
        name = Path(str(origin.get("from", BEGIN))).name
        found[0] = f"{name}:{origin['stage']}" if origin.get("stage") else name
    return found


def _series(label: str, stage: StageFolder, records: StageRecords) -> Series:
    """Everything of a stage that can be drawn against its steps."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in json_lines.read(stage.metrics):
        _add(lines, row or {}, {key: (row or {}).get(key) for key in TRAINING})
    marks: dict[str, list[tuple[float, float]]] = {}
    for row in records.evaluations:
        figures = {"bits per byte": row.get("bits_per_byte"), **(row.get("metrics") or {})}
        _add(marks, row, {f"held-out {key}": figure for key, figure in figures.items()})
    return Series(label, _columns(lines), _columns(marks))


def _add(points: dict[str, list[tuple[float, float]]], row: dict[str, Any], figures: dict[str, Any]) -> None:
    for step in finite_figures({"step": row.get("step")}).values():
        for key, figure in finite_figures(figures).items():
            points.setdefault(key, []).append((step, figure))


def _columns(points: dict[str, list[tuple[float, float]]]) -> dict[str, Points]:
    """Steps and values of each; of a step that stands there twice, the last."""
    found = {key: dict(pairs) for key, pairs in points.items()}
    return {key: (np.array(list(pairs)), np.array(list(pairs.values()))) for key, pairs in found.items()}


def _titles(series: Sequence[Series]) -> dict[str, str]:
    """Key of what is drawn -> its title, the first panels first."""
    held_out = dict.fromkeys(key for one in series for key in one.marks)
    titles = {key: title for key, title in TRAINING.items() if any(key in one.lines for one in series)}
    titles |= {key: key for key in held_out if not key.endswith(("_pairs", "_questions"))}
    return dict(list(titles.items())[:MOST_PANELS])


def _cautions(runs: Sequence[RunFolder], branches: Sequence[Branch]) -> list[str]:
    found = [
        f"stage {branch.label} is not finished; its figures are those so far"
        for branch in branches
        if branch.status != "done"
    ]
    by_source: dict[str, set[str]] = {}
    for run in runs:
        for source, facts in (run.facts().get("heldout") or {}).items():
            by_source.setdefault(source, set()).add(facts["sha256"])
    if differing := sorted(source for source, texts in by_source.items() if len(texts) > 1):
        found.append(f"the held-out text of {', '.join(differing)} differs between the runs")
    if len({branch.objective for branch in branches}) > 1:
        found.append("held-out bits per byte are of what each objective is judged by; compare them by source")
    if len({_names(branch.rewards) for branch in branches if branch.rewards}) > 1:
        found.append("their rewards differ, so the figures of reward are of different things")
    return found
