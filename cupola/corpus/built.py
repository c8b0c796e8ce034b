"""Things that are built once for all runs: in the cache, under a hash of all that they are made from."""

from collections.abc import Callable
from pathlib import Path

import filelock

from cupola import storage
from cupola.display import Display
from cupola.errors import CupolaError


def build_once(
    target: Path, build: Callable[[], None], display: Display, check: Callable[[], object] | None = None
) -> bool:
    """Make `target` if it is not there; whoever else wants it at the same time waits.

    Args:
        build: makes the folder whole, by `storage.new_folder`.
        check: raises CupolaError if the folder can't be used; by default its files are compared in full.

    Returns:
        whether it was built now.
    """
    check = check or (lambda: storage.verify(target))
    lock = filelock.FileLock(target.with_name(f"{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            display.say(f"another process is making {target}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        if target.exists():
            try:
                check()
                return False
            except CupolaError as error:
                display.warn(f"{error}; it is made again")
        build()
        return True
    finally:
        lock.release()
