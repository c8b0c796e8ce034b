"""Files of tensors: safetensors and `.bin` as Hugging Face cuts them into shards.

Reading takes one tensor into memory at a time. Nothing that is read can run code: pickles are opened with
torch's `weights_only`, which refuses whatever is not tensors.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cupola import storage
from cupola.display import Display
from cupola.errors import CupolaError, InputError
from cupola.export.pairs import Pair, Shapes, their_shapes

SHARD_BYTES = 5_000_000_000
NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"


class TensorFiles:
    """Tensors by name, read when asked for, as fp32.

    Attributes:
        shapes: of all of them.
    """

    def __init__(self, origin: str, shapes: Shapes, read: Callable[[str], Tensor]) -> None:
        self.origin, self.shapes, self._read = origin, shapes, read

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, fp32.

        Raises:
            InputError: it holds no floating-point numbers (quantised weights), some that are not finite, or
                can't be read.
        """
        try:
            tensor = self._read(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{self.origin}: {name} cannot be read ({error})") from None
        if tensor.dtype not in NUMBERS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{self.origin}: {name} is {kind}, not plain numbers; nothing was imported")
        tensor = tensor.to(torch.float32)
        if bad := tensor.numel() - int(tensor.isfinite().sum()):
            raise InputError(
                f"{self.origin}: {name} has {bad} of {tensor.numel()} elements that are no finite numbers;"
                " nothing was imported"
            )
        return tensor


def open_folder(folder: Path) -> TensorFiles:
    """The tensors of a Hugging Face folder.

    Raises:
        InputError: there are none, a shard is missing, or a file is damaged.
    """
    files = weight_files(folder)
    opened = open_pickles if files[0].suffix == ".bin" else _open_safetensors
    return opened(files, str(files[0] if len(files) == 1 else folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold them: safetensors before `.bin`, one file before shards, as transformers does.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    for name in (SAFETENSORS, BIN):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in _shards(index)]
    raise InputError(f"{folder}: has neither {SAFETENSORS} nor {BIN}, whole or in shards")


def _shards(index: Path) -> list[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: is no index of shards ({error})") from None
    # By their names alone: a download's files may be links to elsewhere.
    outside = [name for name in shards if PurePath(name).is_absolute() or ".." in PurePath(name).parts]
    if outside:
        raise InputError(f"{index}: names {outside[0]}, which is outside of its folder")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise InputError(f"{index}: names {missing[0]}, which is not there (of {len(shards)} files)")
    return shards


def _open_safetensors(paths: list[Path], origin: str) -> TensorFiles:
    shapes: Shapes = {}
    files: dict[str, Any] = {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                shapes[name] = tuple(file.get_slice(name).get_shape())
                files[name] = file
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is no safetensors file, or damaged ({error})") from None
    return TensorFiles(origin, shapes, lambda name: cast(Tensor, files[name].get_tensor(name)))


def open_pickles(paths: list[Path], origin: str) -> TensorFiles:
    """The tensors of files that `torch.save` wrote; they stay on the disk until they are asked for.

    Raises:
        InputError: a file holds anything but tensors by name, or is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _unpickle(path).items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise InputError(f"{path}: holds {name!r}, which is no tensor under a name")
            if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
                raise InputError(f"{path}: {name} is not stored number by number; nothing was imported")
            tensors[name] = tensor
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorFiles(origin, shapes, tensors.__getitem__)


def _unpickle(path: Path) -> dict[Any, Any]:
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch's format before 1.6 can't be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except pickle.UnpicklingError:  # torch's message tells how to run what is in it all the same
        raise InputError(
            f"{path}: is no file of tensors, or damaged; nothing that it holds was run"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is no file of tensors, or damaged ({why})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no tensors by name")
    return found


def write_shards(
    folder: Path,
    state: dict[str, Tensor],
    pairs: list[Pair],
    dtype: torch.dtype,
    display: Display,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or shards and their index where it would be larger than `shard_bytes`.

    One shard at a time is in memory beside the model.

    Raises:
        CupolaError: the disk is full or not writable.
    """
    shapes = their_shapes(pairs, {name: tuple(tensor.shape) for name, tensor in state.items()})
    width = torch.empty((), dtype=dtype).element_size()
    sizes = {name: width * torch.Size(shape).numel() for name, shape in shapes.items()}
    groups = list(_groups(pairs, sizes, shard_bytes))
    names = [SAFETENSORS]
    if len(groups) > 1:
        names = [f"model-{n:05d}-of-{len(groups):05d}.safetensors" for n in range(1, len(groups) + 1)]
    with display.task("writing weights", total=sum(sizes.values()), unit="bytes") as task:
        for name, group in zip(names, groups, strict=True):
            tensors: dict[str, Tensor] = {}
            for pair in group:
                converted = pair.to([state[ours].detach() for ours in pair.ours])
                tensors |= {
                    theirs: tensor.to(dtype).contiguous()
                    for theirs, tensor in zip(pair.theirs, converted, strict=True)
                }
            try:
                save_file(tensors, folder / name, metadata={"format": "pt"})
            except (SafetensorError, OSError) as error:
                raise CupolaError(f"{folder / name}: cannot be written ({error})") from error
            task.advance(sum(sizes[theirs] for pair in group for theirs in pair.theirs))
    if len(groups) > 1:
        where = {t: name for name, group in zip(names, groups, strict=True) for p in group for t in p.theirs}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        storage.write_json(folder / f"{SAFETENSORS}.index.json", index)


def _groups(pairs: list[Pair], sizes: dict[str, int], shard_bytes: int) -> Iterator[list[Pair]]:
    """Consecutive pairs, together no larger than a shard where one alone is not."""
    group: list[Pair] = []
    filled = 0
    for pair in pairs:
        size = sum(sizes[name] for name in pair.theirs)
        if group and filled + size > shard_bytes:
            yield group
            group, filled = [], 0
        group.append(pair)
        filled += size
    yield group
