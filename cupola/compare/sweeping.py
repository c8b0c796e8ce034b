"""`cupola sweep`: the best value of one setting, by successive halving over ordinary runs.

A trial that goes on does so from its checkpoint: at a rung its run pauses (`cupola run --stop-at`), with the
schedules of the whole stage. So all trials of a rung are compared at one position of one schedule, and by the
same fixed choice of held-out text; the training loss of a few steps would be noisier, and is of whatever
mixture a trial learns from. What this cannot mend is the bias of looking before the decay: there a high
learning rate looks worse than it ends. So two at least go the whole way, and the result says it.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cupola import json_lines, storage
from cupola.compare.admission import (
    refuse_late_rungs,
    refuse_later_stages,
    refuse_unequal_lengths,
    refuse_what_is_no_training,
    rung_end,
    rung_position,
)
from cupola.compare.comparing import job_of, require_stage
from cupola.compare.fleet import run_jobs
from cupola.compare.folder import GroupFolder, stage_folders
from cupola.compare.halving import Over, cost, entrants, shares
from cupola.compare.page import sweep_page, sweep_picture
from cupola.compare.results import cautions, read_run
from cupola.compare.variants import Group, Planned, plan_grid
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.pipeline.origin import read_origin
from cupola.pipeline.records import DONE
from cupola.recipe.clock import Clock
from cupola.recipe.loading import load

UNEQUAL = 1.05
"""From the shortest to the longest training of the trials of a rung, above which it is said."""


@dataclass
class Rung:
    """One comparison of trials: number of the trial -> held-out bits per byte."""

    title: str
    share: float
    figures: dict[int, float] = field(default_factory=dict)

    @property
    def ranked(self) -> list[int]:
        """The trials, the best first; of equal ones the lower value."""
        return sorted(self.figures, key=lambda number: (self.figures[number], number))


@dataclass
class Sweep:
    """What came of a sweep; trials are numbered in the order of their values.

    Attributes:
        overrides: `--set` of all trials.
    """

    folder: Path
    recipe: str
    overrides: tuple[str, ...]
    key: str
    log: bool
    stage: str
    trials: tuple[float, ...]
    rungs: list[Rung]
    places: list[str]
    others: list[str]
    failures: dict[int, str] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)

    @property
    def best(self) -> int | None:
        """The trial that is best at the end of the stage."""
        ranked = self.rungs[-1].ranked
        return ranked[0] if ranked else None

    @property
    def at_edge(self) -> bool:
        """Whether nothing has been tried on one side of the best."""
        return self.best in (0, len(self.trials) - 1)

    def state(self, number: int) -> str:
        """`done`, `stopped at 33%`, `failed` or `not begun`."""
        if number in self.failures:
            return "failed"
        reached = [rung for rung in self.rungs if number in rung.figures]
        if not reached:
            return "not begun"
        return "done" if reached[-1] is self.rungs[-1] else f"stopped at {reached[-1].share:.0%}"

    def last_figure(self, number: int) -> float | None:
        """Of the last rung that a trial reached."""
        return next((rung.figures[number] for rung in reversed(self.rungs) if number in rung.figures), None)

    @property
    def verdict(self) -> str:
        """The result as a sentence or two."""
        if self.best is None:
            return f"{self.key}: no trial has reached the end of stage {self.stage}."
        figures, ranked = self.rungs[-1].figures, self.rungs[-1].ranked
        text = f"{self.key}: the best of {len(self.trials)} values is {self.trials[self.best]:g}, with"
        text += f" {figures[self.best]:.3f} held-out bits per byte after {self.stage}"
        if len(ranked) > 1:
            text += f" (next {self.trials[ranked[1]]:g}: {figures[ranked[1]]:.3f})"
        if self.at_edge:
            side = "lower" if self.best == 0 else "higher"
            text += f". It lies at the edge of the range: sweep {side} values as well"
        return text + "."

    @property
    def notes(self) -> list[str]:
        """How to read the figures."""
        close = [number for rung in self.rungs[-1:] for number in rung.ranked[:2]]
        values = ",".join(f"{self.trials[number]!r}" for number in sorted(close))
        words = ["cupola", "compare", self.recipe, "--vary", f"{self.key}={values}", "--seeds", "3"]
        words += [word for setting in self.overrides for word in ("--set", setting)]
        command = shlex.join([*words, "--until", self.stage])
        return [
            "Held-out bits per byte: before the end of a fixed choice of the held-out text, at the end of all"
            " of it, so figures compare within a column. Each column is one position of the same schedule.",
            "A rung before the decay favours values that settle early: a high learning rate gains most in the"
            " decay, when the choice has been made. Where the finalists come out in another order than they"
            " went in, sweep again around them with fewer rungs (a larger --factor).",
            "One seed: a small difference may be chance; check the closest over seeds"
            + (f" (`{command}`)." if values else "."),
        ]

    @property
    def error(self) -> CupolaError | None:
        """What the command ends with where there is no result."""
        if self.best is not None:
            return None
        why = next(iter(self.failures.values()), "none was begun")
        return CupolaError(f"no trial has reached the end: {why}")

    def as_json(self) -> dict[str, Any]:
        """`sweep.json`."""
        return {
            "sweep": str(self.folder),
            "status": "failed" if self.error else "done",
            "key": self.key,
            "stage": self.stage,
            "best": None if self.best is None else self.trials[self.best],
            "at_edge": self.at_edge,
            "judged_by": "held-out bits per byte",
            "trials": [
                {
                    "value": value,
                    "run": str(self.folder / "runs" / self.places[number]),
                    "state": self.state(number),
                    "bits_per_byte": [rung.figures.get(number) for rung in self.rungs],
                    **({"why": self.failures[number]} if number in self.failures else {}),
                }
                for number, value in enumerate(self.trials)
            ],
            "rungs": [{"share": rung.share, "trials": len(rung.figures)} for rung in self.rungs],
            "not_counted": self.others,
            "cautions": self.cautions,
        }


def plan_sweep(
    recipe: str, over: Over, factor: int, overrides: Sequence[str], until: str | None
) -> tuple[str, list[Planned]]:
    """The stage that is judged and the trials, all validated.

    Args:
        until: the stage; by default the one that the key names, else the first.

    Raises:
        InputError: a value that the recipe refuses, a stage whose horizon is counted in epochs, or trials
            that can't be compared (`compare.admission`).
    """
    refuse_what_is_no_training(over.key)
    words = over.key.split(".")
    stages = load(recipe, overrides, read_origin).stages
    stage = until or (words[1] if words[0] == "stages" and len(words) > 2 else next(iter(stages)))
    rungs = shares(len(over.values), factor)
    axis = [Group(f"{words[-1]}={value:g}", (f"{over.key}={value!r}",)) for value in over.values]
    planned = plan_grid([recipe], [], [axis], None, overrides, beside=[stage, rungs])
    for trial in planned:
        require_stage(trial.variant, trial.recipe, stage)
        horizon = trial.recipe.stages[stage].tokens
        if horizon is None or horizon.unit == "epochs":
            raise InputError(
                f"stage {stage}: its horizon is {horizon}; a sweep needs it in tokens or steps"
                f" (--set stages.{stage}.tokens=...)"
            )
    refuse_later_stages(over.key, planned[0], stage)
    refuse_unequal_lengths(over.key, planned, stage)
    refuse_late_rungs(planned, stage, rungs)
    return stage, planned


def sweep(
    recipe: str,
    over: Over,
    factor: int,
    stage: str,
    planned: Sequence[Planned],
    out: Path,
    jobs: int,
    display: Display,
) -> Sweep:
    """Run the trials, rung by rung, and write table, page and picture.

    Raises:
        InputError: the folder is something else's.
        Interrupted: by a signal; every trial under way was saved.
    """
    folder = GroupFolder(out, "sweep")
    with folder.lock():
        folder.write_plan({"key": over.key, "stage": stage, "values": list(over.values), "factor": factor})
        rungs = [Rung(f"{share:.0%} of {stage}", share) for share in shares(len(planned), factor)]
        places = [folder.place(trial).name for trial in planned]
        others = folder.others(list(planned))
        common = planned[0].overrides
        result = Sweep(out, recipe, common, over.key, over.log, stage, over.values, rungs, places, others)
        result.cautions = _cautions(over, planned, stage, rungs[0])
        _say_plan(result, planned, factor, display)
        try:
            left = list(range(len(planned)))
            for number, rung in enumerate(rungs):
                left = left[: entrants(len(planned), factor, number)]
                _climb(result, folder, planned, rung, left, jobs, display)
                left = rung.ranked
        finally:
            runs = [read_run(trial, folder.place(trial), stage, "") for trial in planned]
            finished = [run for run in runs if run.status == "done"]
            result.cautions += cautions(finished)
            _write(result)
        for line in result.cautions:
            display.warn(line)
        display.say(result.verdict)
    return result


def _climb(
    result: Sweep,
    folder: GroupFolder,
    planned: Sequence[Planned],
    rung: Rung,
    numbers: Sequence[int],
    jobs: int,
    display: Display,
) -> None:
    """Bring some trials to a rung; one that fails or diverges there is out."""
    to_do = {}
    for number in numbers:
        trial = planned[number]
        if _figure(folder.place(trial), trial, result.stage, rung.share) is None:
            clock = Clock(trial.recipe.stages[result.stage])
            stop = [] if rung.share == 1 else ["--stop-at", f"{rung_position(clock, rung.share)} tokens"]
            to_do[number] = job_of(folder, trial, result.stage, stop, rung.share)
    outcomes = run_jobs(list(to_do.values()), jobs, display) if to_do else {}
    for number in numbers:
        trial = planned[number]
        figure = _figure(folder.place(trial), trial, result.stage, rung.share)
        if figure is not None and math.isfinite(figure):
            rung.figures[number] = figure
            continue
        outcome = outcomes.get(to_do[number].folder) if number in to_do else None
        if outcome and outcome.why:
            result.failures[number] = outcome.why
        elif figure is not None:
            result.failures[number] = "its held-out loss is not finite"
        else:
            result.failures[number] = (
                f"its records have no evaluation at {rung.title}; remove its folder to train it anew"
            )
    _say_rung(result, rung, display)


def _figure(place: Path, trial: Planned, stage: str, share: float) -> float | None:
    """Held-out bits per byte of a trial at a rung; NaN where that is not finite, None before it got there."""
    files = stage_folders(place, trial.recipe, stage)[-1]
    if share == 1:
        try:
            facts = files.facts()
        except CupolaError:
            return None
        return _number(facts["heldout_bits_per_byte"]) if facts.get("status") == DONE else None
    position = rung_position(Clock(trial.recipe.stages[stage]), share)
    steps = (row["step"] for row in json_lines.read_whole(files.metrics) if row["tokens"] >= position)
    reached = next(steps, None)
    for row in json_lines.read_whole(files.evaluations):
        if row["step"] == reached and not row["whole"]:
            return _number(row["bits_per_byte"])
    return None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _cautions(over: Over, planned: Sequence[Planned], stage: str, rung: Rung) -> list[str]:
    found = []
    if over.wide:
        found.append(f"{over.key} is spaced evenly over a wide range; `:log` spaces it evenly by ratio")
    clocks = [Clock(trial.recipe.stages[stage]) for trial in planned]
    ends = [rung_end(clock, rung.share) for clock in clocks]
    if max(ends) > UNEQUAL * min(ends):
        found.append(
            f"the first rung, {rung.title}, is the end of a step, by which the trials have trained on"
            f" {min(ends):,} to {max(ends):,} tokens; say a smaller --factor or a longer stage"
        )
    clock = clocks[0]
    if clock.warmup > rung.share * clock.total:
        found.append(
            f"the first rung, {rung.title}, lies inside the warm-up; say a smaller --factor or warm-up"
        )
    before = list(planned[0].recipe.stages).index(stage)
    if before:
        found.append(f"every trial trains the {before} stages before {stage} as well")
    return found


def _say_plan(result: Sweep, planned: Sequence[Planned], factor: int, display: Display) -> None:
    steps = ", ".join(
        f"{entrants(len(planned), factor, number)} to {rung.share:.0%}"
        for number, rung in enumerate(result.rungs)
    )
    stages = cost(len(planned), factor)
    display.say(
        f"sweep of {result.key} in {result.folder}: {steps} of stage {result.stage}, the training of"
        f" {stages:.1f} stages instead of {len(planned)}"
    )


def _say_rung(result: Sweep, rung: Rung, display: Display) -> None:
    ranked = ", ".join(f"{result.trials[number]:g} ({rung.figures[number]:.3f})" for number in rung.ranked)
    display.say(f"after {rung.title}, best first: {ranked or 'none'}")


def _write(result: Sweep) -> None:
    """`sweep.json`, `sweep.html`, `sweep.svg`."""
    storage.write_json(result.folder / "sweep.json", result.as_json())
    if svg := sweep_picture(result, standalone=True):
        storage.write_text(result.folder / "sweep.svg", svg)
    storage.write_text(result.folder / "sweep.html", sweep_page(result))
