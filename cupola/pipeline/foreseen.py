"""The plan of a run as it stands in the run's folder: made once for a stage, said, and kept on resume."""

from typing import Any

from cupola.display import Display, duration
from cupola.pipeline.folder import RunFolder
from cupola.pipeline.plan import PlannedStage
from cupola.pipeline.preflight import Check
from cupola.plan.own import StagePlan
from cupola.report.planned import comparisons, whole_run
from cupola.report.records import RunRecords

PLAN = "plan"
"""The key of run.json, stage -> its plan and the stage's key; and the ledger's event."""


def record_plan(folder: RunFolder, check: Check, planned: list[PlannedStage], display: Display) -> None:
    """Keep what the dry run found each stage to take, and say it.

    A plan that was made for the same stage stays: what came of a stage is held against what was said before
    it began.
    """
    made = {stage.name: stage.plan for stage in check.stages}
    kept = folder.facts().get(PLAN, {})
    fresh: dict[str, Any] = {}
    for stage in planned:
        known = kept.get(stage.name, {}).get("key") == stage.key
        if stage.action == "begin" or (stage.action == "resume" and not known):
            fresh[stage.name] = {"key": stage.key, **made[stage.name]}
    folder.ledger.append(PLAN, stages=fresh)
    folder.record(**{PLAN: {**kept, **fresh}})
    plans = {name: StagePlan.from_json(plan) for name, plan in fresh.items()}
    found = {name: plan for name, plan in plans.items() if plan is not None}
    for name, plan in found.items():
        for line in plan.lines(name):
            display.say(line)
    if len(found) > 1:
        display.say(f"plan of all stages: {duration(sum(plan.total for plan in found.values()))}")


def outcome(records: RunRecords, names: list[str]) -> dict[str, Any]:
    """Stage -> its plan beside what happened, for `cupola run --json`; and all stages' time under `total`.

    Args:
        names: the stages that were asked for.
    """
    found = {name: one for name, one in comparisons(records).items() if name in names}
    whole = whole_run(found)
    stages = {name: one.as_json() for name, one in found.items()}
    return {"stages": stages, "total_seconds": None if whole is None else whole.as_json()}


def say_outcome(records: RunRecords, names: list[str], display: Display) -> None:
    """A line a stage: what happened, and what was planned."""
    found = {name: one for name, one in comparisons(records).items() if name in names}
    for name, one in found.items():
        display.say(one.line(name))
    whole = whole_run(found)
    if whole is not None and len(found) > 1:
        error = f"{whole.error:+.1f}%"
        display.say(f"all stages: {duration(whole.happened)} (planned {duration(whole.planned)}, {error})")
