"""What the runs and their checkpoints are, read from their folders; no torch."""

from pathlib import Path
from typing import Any

from cupola import storage
from cupola.checkpoint.names import checkpoints, step_of
from cupola.display import Display
from cupola.errors import CupolaError
from cupola.pipeline.folder import RunFolder, StageFolder, find_run


def list_checkpoints(run: str | Path, contents: bool, display: Display) -> list[dict[str, Any]]:
    """The checkpoints of a run, oldest first.

    Args:
        contents: compare every byte with its SHA-256; otherwise names and sizes.

    Returns:
        Rows of stage, step, global_step, tokens, path, verified, weights_sha256, and error if not verified.

    Raises:
        InputError: no such run.
    """
    found = [(stage, path) for stage in find_run(run).stages() for path in checkpoints(stage.checkpoints)]
    rows = []
    with display.task("verifying checkpoints", total=len(found), unit="checkpoints") as task:
        for stage, path in found:
            rows.append(_row(stage, path, contents))
            task.advance()
    return rows


def _row(stage: StageFolder, path: Path, contents: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    error = None
    try:
        facts = storage.read_manifest(path)
        storage.verify(path, contents)
    except CupolaError as failure:
        error = str(failure)
    row = {
        "stage": stage.name,
        "step": facts.get("step", step_of(path)),
        "global_step": facts.get("global_step"),
        "tokens": facts.get("tokens"),
        "path": str(path),
        "verified": error is None,
        "weights_sha256": facts.get("weights_sha256"),
    }
    return row if error is None else {**row, "error": error}


def list_runs(root: Path) -> list[dict[str, Any]]:
    """The runs in a folder, with the state of each stage."""
    rows = []
    for path in sorted(root.glob("*/run.json")):
        folder = RunFolder(path.parent)
        stages = [
            {
                "name": stage.name,
                "status": facts.get("status"),
                "tokens": facts.get("tokens"),
                "heldout_bits_per_byte": facts.get("heldout_bits_per_byte"),
            }
            for stage in folder.stages()
            if (facts := stage.facts())
        ]
        rows.append({"name": folder.facts().get("name"), "path": str(folder.path), "stages": stages})
    return rows
