"""One checkpoint is one folder: weights and optimizer as safetensors, the position as JSON, a manifest.

Guarantees: a folder named `step-N` is whole (it was written aside, hashed, fsynced and renamed); it is
loaded only after every file's SHA-256 has been compared; when the newest does not verify, the one before
it is used, and the caller is told. Tensors are stored under their parameters' names, so nothing in the
files depends on a layout.
Costs: a save hashes what it wrote (about 1 GB/s of one core), a load hashes what it reads.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cupola import storage
from cupola.checkpoint.names import checkpoints, folder_name
from cupola.errors import CupolaError

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors and facts.

    Attributes:
        weights: parameter name -> tensor.
        optimizer: "parameter/state" -> tensor.
        facts: stage, step (in the stage), global_step, tokens, weights_sha256, and what the trainer keeps.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    facts: dict[str, Any]


def weights_sha256(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes in the order of the names: the same for equal
    weights, however they are laid out in files."""
    state = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def save(
    folder: Path,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    facts: dict[str, Any],
) -> Path:
    """Write `folder/step-N` (N is `facts["step"]`) and point `folder/latest` at it.

    Raises:
        CupolaError: the disk is full or not writable; what was saved before is untouched.
    """
    target = folder / folder_name(facts["step"])
    facts = {**facts, "weights_sha256": weights_sha256(weights)}
    with storage.new_folder(target, facts) as aside:
        for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
            try:
                save_file({key: value.detach().contiguous() for key, value in tensors.items()}, aside / name)
            except SafetensorError as error:
                raise CupolaError(f"{target / name}: cannot be written ({error})") from error
    _point_latest(folder, target.name)
    return target


def _point_latest(folder: Path, name: str) -> None:
    aside = folder / f"{storage.ASIDE}{LATEST}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(name)
    aside.replace(folder / LATEST)


def load(path: Path) -> Checkpoint:
    """Verify a checkpoint's every byte, then read it (tensors on the CPU).

    Raises:
        CupolaError: names the file that is missing or damaged.
    """
    manifest = storage.verify(path)
    facts = {key: value for key, value in manifest.items() if key != "files"}
    try:
        return Checkpoint(path, load_file(path / WEIGHTS), load_file(path / OPTIMIZER), facts)
    except (SafetensorError, OSError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})") from error


def newest_verified(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a folder that verifies; `report` is told of each that does not."""
    for path in reversed(checkpoints(folder)):
        try:
            storage.verify(path)
        except CupolaError as error:
            report(f"checkpoint {path.name} is not used: {error}; going back to the one before it")
            continue
        return path
    return None


def retain(folder: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest checkpoints; returns what was removed."""
    doomed = checkpoints(folder)[:-keep]
    for path in doomed:
        aside = path.with_name(f"{storage.ASIDE}{path.name}-old")
        path.rename(aside)  # it must not be taken for whole while its files go
        shutil.rmtree(aside, ignore_errors=True)
    return doomed
