"""How checkpoints are named and found; no torch, so that listing them is instant."""

import re
from pathlib import Path

NAME = re.compile(r"step-(\d+)$")
DAMAGED = ".damaged"  # ends the name of a checkpoint that was set aside


def folder_name(step: int) -> str:
    """The name of the folder that holds the checkpoint after `step` steps of its stage."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None if it is no checkpoint's."""
    match = NAME.match(path.name)
    return int(match[1]) if match else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; not verified."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found)]
