"""Write a run's damaged `run.json` and `stage.json` anew, from the ledger, before the run goes on.

Guarantees: no checkpoint is touched, and the damaged file is kept beside the new one. What shapes the weights
(the stage's key, what `auto` meant, whether blocks are compiled) comes back as it was; the rest is worked out
again by the run. Where the ledger does not have a key, nothing is guessed: the run stops and says what to do.
"""

from typing import Any

from cupola import storage
from cupola.checkpoint.names import checkpoints
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.pipeline.folder import DamagedRecord, RunFolder, StageFolder

BEGINNINGS = ("stage_begun", "stage_resumed")


def mend_records(folder: RunFolder, display: Display) -> None:
    """Write anew what is damaged or gone of a run's records; the folder must be locked.

    Raises:
        CupolaError: a stage has checkpoints, and neither its record nor the ledger says what they are of.
    """
    events = folder.ledger.events()
    if not _readable(folder) and (events or folder.record_path.exists()):
        decisions = folder.decided()
        _write(folder, folder, {"decisions": decisions} if decisions else {}, display)
        if not decisions:
            display.warn("what `auto` meant in this run is not known any more; it is decided again")
    for stage in folder.stage_folders():
        if not _readable(stage) and (stage.record_path.exists() or checkpoints(stage.checkpoints)):
            _write(folder, stage, _stage_facts(stage, events), display)


def _readable(folder: RunFolder | StageFolder) -> bool:
    try:
        facts = folder.facts()
    except DamagedRecord:
        return False
    return bool(facts) if isinstance(folder, RunFolder) else "key" in facts


def _write(run: RunFolder, folder: RunFolder | StageFolder, facts: dict[str, Any], display: Display) -> None:
    path, kept = folder.record_path, ""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.damaged"))
        kept = f"; the old one is kept as {path.name}.damaged"
    storage.write_json(path, facts)
    display.warn(f"{path}: was damaged or gone and is written anew from the ledger{kept}")
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
            facts = {"name": stage.name, "key": event["key"], "status": "running"}
            facts["compiled"] = event.get("compiled", False)
        elif event.get("event") == "stage_done" and facts:
            facts |= {key: value for key, value in event.items() if key not in ("time", "event", "stage")}
    if not facts and checkpoints(stage.checkpoints):
        raise CupolaError(
            f"{stage.record_path}: is damaged or gone, and the ledger does not say what it held; put it back"
            f" from a copy, or rename {stage.path} to .{stage.path.name}: that keeps its checkpoints, and the"
            " stage is trained again"
        )
    return facts
