"""Files that exist whole or not at all: written aside, hashed, fsynced, then renamed.

Every artefact of Cupola (cleaned text, tokenizer, store, checkpoint) is a folder with a
`manifest.json` that holds the size and SHA-256 of each of its files, and a digest of itself, since a bit that
flips in a number or a key leaves valid JSON. A folder becomes visible by one rename; whatever a kill leaves
behind has a name that no reader looks for and is swept on the next write, but for a folder that was about to
be replaced: that one is put back. Permissions are what the umask leaves, so that a group can share a cache.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cupola.errors import CupolaError

MANIFEST = "manifest.json"
SEAL = "facts_sha256"  # the key of an object's own digest
ASIDE = ".aside-"
OLD = "old"  # a folder that makes room for its successor
GONE = "gone"  # a folder that is being deleted
LEFTOVER = re.compile(re.escape(ASIDE) + rf"(.+)-([0-9a-z_]{{8}}|{OLD}|{GONE})")
SECONDS_OF_A_WRITE = 3600.0  # a file aside that is older than this has no writer any more


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as JSON reads them back, with their digest beside them; a seal among them is replaced."""
    plain = unsealed(json.loads(json.dumps(facts)))
    return {**plain, SEAL: digest(plain)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The facts without their seal."""
    return {key: fact for key, fact in value.items() if key != SEAL}


def seal_holds(value: dict[str, Any]) -> bool:
    """Whether an object is what was sealed; one without a seal (older than seals) is taken as it is."""
    return SEAL not in value or value[SEAL] == digest(unsealed(value))


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


def aside_of(target: Path, ending: str | None = None) -> Path:
    """The name beside `target` under which it is written (a new one each time), replaced or deleted."""
    return target.with_name(f"{ASIDE}{target.name}-{ending or secrets.token_hex(4)}")


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename: a reader sees the old text or the new, never a part of it."""
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_files(path.parent)
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise CupolaError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    fsync_path(path.parent)


def _sweep_files(folder: Path) -> None:
    """Remove the files that killed writers left; those of living ones are younger."""
    for leftover in folder.glob(f"{ASIDE}*"):
        with contextlib.suppress(OSError):  # another process may sweep too
            facts = leftover.lstat()
            if stat.S_ISREG(facts.st_mode) and time.time() - facts.st_mtime > SECONDS_OF_A_WRITE:
                leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_folder(target: Path, facts: dict[str, Any] | None = None, replace: bool = True) -> Iterator[Path]:
    """Make a folder that appears whole: yields a folder aside, which becomes `target` on leaving.

    On leaving, every file is hashed into `manifest.json` beside `facts`, the manifest is sealed, all is
    fsynced, and the folder is renamed. If the body raises, nothing remains.

    Args:
        replace: an old `target` is replaced; otherwise one that is there by then, whoever made it, stays as
            it is.

    Raises:
        CupolaError: the disk is full or not writable, or `target` is there and not to be replaced; names the
            folder.
    """
    with appearing(target, replace) as aside:
        yield aside
        _seal(aside, facts or {})


@contextlib.contextmanager
def appearing(target: Path, replace: bool = True) -> Iterator[Path]:
    """`new_folder` without a manifest, for a folder whose files are safe on the disk already."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        aside = aside_of(target)
        aside.mkdir()
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield aside
        if replace:
            _put_in_place(aside, target)
        else:
            _put_where_nothing_is(aside, target)
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror or error})") from error
    except CupolaError as error:
        # The folder aside is gone when this is read.
        error.args = tuple(str(word).replace(str(aside), str(target)) for word in error.args)
        error.problem = error.problem.replace(str(aside), str(target))
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put_where_nothing_is(aside: Path, target: Path) -> None:
    """Rename to a name that must be free: a rename to a folder with something in it fails, so that between
    the look and the rename no more than an empty one can be lost."""
    try:
        if os.path.lexists(target):
            raise FileExistsError
        os.rename(aside, target)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise CupolaError(
                f"{target}: somebody else made it meanwhile, so it was left as it is and nothing was written",
                "choose another name",
            ) from None
        raise
    fsync_path(target.parent)


def _open_up(folder: Path) -> None:
    """Let whoever may read the folder read its files; libraries write private ones (safetensors does)."""
    allowed = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (allowed if path.is_dir() else allowed & 0o666))


def _put_in_place(aside: Path, target: Path) -> None:
    """Rename a sealed folder to `target`; between the two renames of a replacement `target` is missing, so
    whatever interrupts there, here or in the next writer's `sweep`, the old one is put back."""
    doomed = aside_of(target, OLD)
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        if target.exists():
            os.rename(target, doomed)
        os.rename(aside, target)
    except BaseException:  # also Ctrl-C
        _put_back(doomed, target)
        raise
    fsync_path(target.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    if old.is_dir() and not target.exists():
        old.rename(target)


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    files = {}
    _open_up(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        fsync_path(path)
    write_json(folder / MANIFEST, sealed({**facts, "files": files}))


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left behind; put it back if it was about to be replaced."""
    _sweep_folders(target.parent, target.name)


def sweep_all(folder: Path) -> None:
    """`sweep` of everything in a folder that only one process writes to."""
    _sweep_folders(folder, None)


def _sweep_folders(parent: Path, only: str | None) -> None:
    for leftover in parent.glob(f"{ASIDE}*"):
        match = LEFTOVER.fullmatch(leftover.name)
        # In full, since a name may begin with another: `git` must not sweep what is written for `git-doc`.
        if not match or only not in (None, match[1]) or leftover.is_symlink() or not leftover.is_dir():
            continue
        if match[2] == OLD:
            _put_back(leftover, parent / match[1])
        shutil.rmtree(leftover, ignore_errors=True)


def delete_folder(target: Path) -> None:
    """Delete a folder that readers take for whole: it loses its name before its files go."""
    gone = aside_of(target, GONE)
    shutil.rmtree(gone, ignore_errors=True)
    target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, without its seal.

    Raises:
        CupolaError: there is none, it is not a JSON object, or not what was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CupolaError(f"{folder}: has no {MANIFEST}, so it is not a whole artefact of Cupola") from None
    except (ValueError, OSError) as error:
        raise CupolaError(f"{path}: cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise CupolaError(f"{path}: is damaged (it is no JSON object)")
    if not seal_holds(manifest):
        raise CupolaError(f"{path}: is damaged (its SHA-256 is not the one written in it)")
    return unsealed(manifest)


def verify(folder: Path, contents: bool = True, only: Collection[str] | None = None) -> dict[str, Any]:
    """Check a folder against its manifest and return the manifest.

    Args:
        contents: compare the SHA-256 of every file; otherwise only names and sizes (instant).
        only: check these files and no others; by default all.

    Raises:
        CupolaError: names the first file that is missing, unreadable, of another size, or of other contents.
    """
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CupolaError(f"{folder / MANIFEST}: lists no files")
    for name in files if only is None else only:
        try:
            expected = (files[name]["bytes"], files[name]["sha256"])
        except (KeyError, TypeError):
            raise CupolaError(f"{folder / MANIFEST}: does not say what {name} holds") from None
        _verify_file(folder / name, *expected, contents)
    return manifest


def _verify_file(path: Path, size: int, sha256: str, contents: bool) -> None:
    if not path.is_file():
        raise CupolaError(f"{path}: is missing")
    try:
        if path.stat().st_size != size:
            raise CupolaError(f"{path}: has {path.stat().st_size} bytes, {size} were written")
        if contents and file_sha256(path) != sha256:
            raise CupolaError(f"{path}: is damaged (its SHA-256 is not the one written)")
    except OSError as error:
        raise CupolaError(f"{path}: cannot be read ({error.strerror})") from error
