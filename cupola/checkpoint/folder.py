"""One checkpoint is one folder: weights and optimizer as safetensors, the position as JSON, a manifest.

Guarantees: a folder named `step-N` is whole (it was written aside, hashed, fsynced and renamed); it is
loaded only after the SHA-256 of every file, and of the manifest itself, has been compared; when the newest
does not verify, the one before it is used, and the caller is told. Whoever needs the weights alone is not
stopped by a damaged optimizer.
Tensors are stored under their parameters' names, so nothing in the files depends on a layout.
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
from cupola.checkpoint.names import DAMAGED, checkpoints, folder_name, step_of
from cupola.checkpoint.verifying import verify
from cupola.errors import CupolaError

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
ADAPTER = "adapter.safetensors"
LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's tensors and facts.

    Attributes:
        weights: parameter name -> tensor.
        optimizer: "parameter/state" -> tensor.
        facts: what `verifying.Facts` names, and what the trainer keeps.
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
    adapter: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write `folder/step-N` (N is `facts["step"]`) and point `folder/latest` at it.

    Args:
        adapter: LoRA's matrices, where the weights have them merged.
        facts: those of `verifying.Facts` but weights_sha256; without them it will not load.

    Raises:
        CupolaError: the disk is full or not writable; what was saved before is untouched.
    """
    target = folder / folder_name(facts["step"])
    facts = {**facts, "weights_sha256": weights_sha256(weights)}
    with storage.new_folder(target, facts) as aside:
        parts = {WEIGHTS: weights, OPTIMIZER: optimizer} | ({ADAPTER: adapter} if adapter else {})
        for name, tensors in parts.items():
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


def load(path: Path, with_optimizer: bool = True) -> Checkpoint:
    """Verify every byte of a checkpoint that is needed, then read it (tensors on the CPU).

    Args:
        with_optimizer: otherwise only the weights are verified and read, and `optimizer` is empty.

    Raises:
        CupolaError: names the file that is missing or damaged.
    """
    needed = (WEIGHTS, OPTIMIZER) if with_optimizer else (WEIGHTS,)
    manifest = verify(path, only=needed)
    facts = {key: value for key, value in manifest.items() if key != "files"}
    try:
        weights, *optimizer = (load_file(path / name) for name in needed)
    except (SafetensorError, OSError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})") from error
    return Checkpoint(path, weights, optimizer[0] if optimizer else {}, facts)


def load_adapter(path: Path) -> dict[str, torch.Tensor]:
    """LoRA's matrices that a checkpoint keeps beside its weights.

    Raises:
        CupolaError: the file is damaged, or there is none.
    """
    verify(path, only=(ADAPTER,))
    try:
        return load_file(path / ADAPTER)
    except (SafetensorError, OSError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})") from error


def load_newest(
    folder: Path, report: Callable[[str], None], with_optimizer: bool = True
) -> Checkpoint | None:
    """The newest checkpoint of a folder that can be loaded; `report` is told of each that cannot."""
    for path in reversed(checkpoints(folder)):
        try:
            return load(path, with_optimizer)
        except CupolaError as error:
            report(f"checkpoint {path.name} is not used: {error}")
    return None


def set_aside_newer(folder: Path, good: Path | None) -> list[Path]:
    """Rename what is newer than the newest good checkpoint (None: all) to `step-N.damaged`.

    Whoever goes on from `good` saves those steps again; a damaged one must not be counted as newer.

    Returns:
        The new names.
    """
    found = checkpoints(folder)
    newer = found if good is None else found[found.index(good) + 1 :]
    renamed = []
    for path in newer:
        damaged = path.with_name(path.name + DAMAGED)
        shutil.rmtree(damaged, ignore_errors=True)
        renamed.append(path.rename(damaged))
    if renamed and good is not None:
        _point_latest(folder, good.name)
    elif renamed:
        (folder / LATEST).unlink(missing_ok=True)
    return renamed


def retain(folder: Path, keep: int, saved: Path) -> list[Path]:
    """Remove all but `keep` checkpoints, the one just saved and those right before it.

    What is newer than `saved` is neither counted nor touched. Damaged ones that were set aside go once their
    step is saved again, or a later one.

    Returns:
        The checkpoints that were removed.
    """
    found = checkpoints(folder)
    doomed = found[: found.index(saved) + 1][:-keep]
    last = step_of(saved) or 0
    steps = {path: step_of(path.with_suffix("")) for path in folder.glob(f"*{DAMAGED}")}
    replaced = [path for path, step in steps.items() if step is not None and step <= last]
    for path in [*doomed, *replaced]:
        storage.delete_folder(path)
    return doomed
