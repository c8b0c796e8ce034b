"""Write a run's damaged `run.json` and `stage.json` anew, from the ledger, before the run goes on.

Guarantees: no checkpoint is touched, and the damaged file is kept beside the new one. What shapes the weights
(the stage's key, what `auto` meant, whether blocks are compiled) comes back as it was; the rest is worked out
again by the run. Where the ledger does not have a key, nothing is guessed: the run stops and says what to do.
"""

from typing import Any

from cupola.checkpoint.names import checkpoints
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.pipeline.folder import DamagedRecord, RunFolder, StageFolder, write_record
from cupola.pipeline.records import RUNNING, stage_fault

BEGINNINGS = ("stage_begun", "stage_resumed")
NOT_RECORDED = ("time", "event", "stage", "spent")
"""What a `stage_done` says beside the record."""


def mend_records(folder: RunFolder, name: str, display: Display) -> None:
    """Write anew what is damaged or gone of a run's records; the folder must be locked.

    Args:
        name: of the recipe that the run is of.

    Raises:
        CupolaError: a stage has checkpoints, and neither its record nor the ledger says what they are of.
    """
    if damage := _damage(folder):
        decisions = folder.decided()
        facts = {"name": name, "decisions": decisions} if decisions else {"name": name}
        _replace(folder, folder, facts, damage, display)
        if not decisions:
            display.warn("what `auto` meant in this run is not known any more; it is decided again")
    for stage in folder.stage_folders():
        if damage := _damage(stage):
            _replace(folder, stage, _stage_facts(stage, folder.ledger.events()), damage, display)


def _damage(folder: RunFolder | StageFolder) -> str | None:
    try:
        folder.facts()
    except DamagedRecord as error:
        return error.problem
    return None


def _replace(
    run: RunFolder, folder: RunFolder | StageFolder, facts: dict[str, Any], damage: str, display: Display
) -> None:
    path, kept = folder.record_path, ""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.damaged"))
        kept = f"; the old one is kept as {path.name}.damaged"
    if facts:  # else nothing was trained yet
        write_record(path, facts)
    display.warn(f"{damage}; it is written anew from the ledger{kept}")
    run.ledger.append("record_mended", file=path.relative_to(run.path).as_posix())


def _stage_facts(stage: StageFolder, events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the ledger knows of a stage since it was last begun."""
    facts: dict[str, Any] = {}
    for event in events:
        if event.get("stage") != stage.name:
            continue
        if event.get("event") == "stage_set_aside":
            facts = {}
        elif event.get("event") in BEGINNINGS and "key" in event:
            facts = {"name": stage.name, "key": event["key"], "status": RUNNING}
            facts["compiled"] = event.get("compiled", False)
        elif event.get("event") == "stage_done" and facts:
            facts |= {key: value for key, value in event.items() if key not in NOT_RECORDED}
    if facts and stage_fault(facts, stage.name) is None:
        return facts
    if checkpoints(stage.checkpoints):
        raise CupolaError(
            f"{stage.record_path}: is damaged or gone, and the ledger does not say what it held; put it back"
            f" from a copy, or rename {stage.path} to .{stage.path.name}: that keeps its checkpoints, and the"
            " stage is trained again"
        )
    return {}
