"""Files that exist whole or not at all: written aside, hashed, fsynced, then renamed.

Every artefact of Cupola (cleaned text, tokenizer, store, checkpoint) is a folder with a
`manifest.json` that holds the size and SHA-256 of each of its files. A folder becomes visible by one
rename; whatever a kill leaves behind has a name that no reader looks for and is swept on the next write.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cupola.errors import CupolaError

MANIFEST = "manifest.json"
ASIDE = ".aside-"


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename: a reader sees the old text or the new, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=ASIDE, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        Path(aside).unlink(missing_ok=True)
        raise CupolaError(f"{path}: cannot be written ({error.strerror})") from error
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(target: Path, facts: dict[str, Any] | None = None) -> Iterator[Path]:
    """Make a folder that appears whole: yields a folder aside, which becomes `target` on leaving.

    On leaving, every file is hashed into `manifest.json` beside `facts`, all is fsynced, and the folder is
    renamed; an old `target` is replaced. If the body raises, nothing of it remains.

    Raises:
        CupolaError: the disk is full or not writable; names the folder.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        aside = Path(tempfile.mkdtemp(prefix=f"{ASIDE}{target.name}-", dir=target.parent))
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield aside
        _seal(aside, facts or {})
        if target.exists():
            doomed = target.with_name(f"{ASIDE}{target.name}-old")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(target, doomed)
            os.rename(aside, target)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            os.rename(aside, target)
        fsync_path(target.parent)
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        fsync_path(path)
    write_json(folder / MANIFEST, {**facts, "files": files})


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left behind."""
    # In full, since a name may begin with another: `git` must not sweep what is written for `git-doc`.
    name = re.compile(re.escape(f"{ASIDE}{target.name}-") + r"([a-z0-9_]{8}|old)")
    for leftover in target.parent.glob(f"{ASIDE}*"):
        if name.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        CupolaError: there is none, or it is not JSON.
    """
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CupolaError(f"{folder}: has no {MANIFEST}, so it is not a whole artefact of Cupola") from None
    except (ValueError, OSError) as error:
        raise CupolaError(f"{folder / MANIFEST}: cannot be read ({error})") from error


def verify(folder: Path, contents: bool = True) -> dict[str, Any]:
    """Check a folder against its manifest and return the manifest.

    Args:
        contents: compare the SHA-256 of every file; otherwise only names and sizes (instant).

    Raises:
        CupolaError: names the first file that is missing, of another size, or of other contents.
    """
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CupolaError(f"{folder / MANIFEST}: lists no files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CupolaError(f"{path}: is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CupolaError(f"{path}: has {path.stat().st_size} bytes, {expected['bytes']} were written")
        if contents and file_sha256(path) != expected["sha256"]:
            raise CupolaError(f"{path}: is damaged (its SHA-256 is not the one written)")
    return manifest
