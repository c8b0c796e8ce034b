"""What the runs and their checkpoints are, read from their folders; no torch."""

from pathlib import Path
from typing import Any

from cupola import json_lines
from cupola.checkpoint import verifying
from cupola.checkpoint.names import checkpoints, step_of
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.pipeline.folder import RunFolder, StageFolder, find_run, held, runs_in
from cupola.pipeline.records import IMPORTED, RUNNING
from cupola.recipe.origin import BEGIN


def list_checkpoints(run: str | Path, contents: bool, display: Display) -> list[dict[str, Any]]:
    """The checkpoints of a run, oldest first.

    Args:
        contents: compare every byte with its SHA-256; otherwise only names and sizes are looked at.

    Returns:
        Rows of stage, step, global_step, tokens, path, verified (None where contents were not read),
        weights_sha256, and error if one was found.

    Raises:
        InputError: no such run.
    """
    found = [(stage, path) for stage in find_run(run).stages() for path in checkpoints(stage.checkpoints)]
    rows = []
    title = "verifying checkpoints" if contents else "listing checkpoints"
    with display.task(title, total=len(found), unit="checkpoints") as task:
        for stage, path in found:
            rows.append(_row(stage, path, contents))
            task.advance()
    return rows


def _row(stage: StageFolder, path: Path, contents: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    error = None
    try:
        facts = verifying.read_facts(path)
        verifying.verify(path, contents)
    except CupolaError as failure:
        error = str(failure)
    row = {
        "stage": stage.name,
        "step": facts.get("step", step_of(path)),
        "global_step": facts.get("global_step"),
        "tokens": facts.get("tokens"),
        "path": str(path),
        "verified": (True if contents else None) if error is None else False,
        "weights_sha256": facts.get("weights_sha256"),
    }
    return row if error is None else {**row, "error": error}


def list_runs(root: Path) -> list[dict[str, Any]]:
    """The runs in a folder, with the state of each stage: done, running, stopped or damaged; `error` where a
    record is damaged."""
    return [_run_row(run) for run in runs_in(root)]


def last_look(run: str | Path, stage: str | None = None) -> dict[str, Any]:
    """The newest row of numerical health of a run, with its stage.

    Args:
        stage: by default the last one that was looked at.

    Raises:
        InputError: no such run or stage, or it was never looked at.
    """
    folder = find_run(run)
    stages = folder.stages()
    names = [known.name for known in stages]
    if stage is not None and stage not in names:
        raise InputError(f"--stage {stage}: no such stage; {folder.path} has {', '.join(names) or 'none'}")
    for known in reversed(stages):
        rows = json_lines.read_whole(known.health) if stage in (None, known.name) else []
        if rows:
            return {"stage": known.name, **rows[-1]}
    where = f"{folder.path}: " + (f"stage {stage}" if stage else "no stage")
    raise InputError(
        f"{where} was {'not ' if stage else ''}looked at yet; `health: 10 steps` in the recipe (or --set) "
        "looks more often"
    )


def _run_row(folder: RunFolder) -> dict[str, Any]:
    facts, errors = _facts(folder)
    stages = []
    at_work = held(folder.path)
    for stage in folder.stages():
        known, damage = _facts(stage)
        errors += damage
        status = known.get("status")
        if status == RUNNING and not at_work:
            status = "stopped"
        stages.append(
            {
                "name": stage.name,
                "status": "damaged" if damage else status,
                "tokens": known.get("tokens"),
                "heldout_bits_per_byte": known.get("heldout_bits_per_byte"),
            }
        )
    row = {"name": facts.get("name", folder.path.name), "path": str(folder.path), "stages": stages}
    if origin := origin_of(folder):
        row["begins_with"] = origin
    return {**row, "error": errors[0]} if errors else row


def origin_of(folder: RunFolder) -> str | None:
    """Where the weights are from that a run begins with, or that were imported, with their stage."""
    facts, _ = _facts(folder)
    origin = facts.get(IMPORTED) or _facts(folder.stage(0, BEGIN))[0].get("origin")
    if origin is None:
        return None
    return f"{origin['from']}:{origin['stage']}" if origin.get("stage") else str(origin["from"])


def _facts(folder: RunFolder | StageFolder) -> tuple[dict[str, Any], list[str]]:
    """The record of a run or stage, or why there is none."""
    try:
        return folder.facts(), []
    except CupolaError as error:
        return {}, [str(error)]
