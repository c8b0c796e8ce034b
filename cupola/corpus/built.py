"""Things that are built once for all runs: in the cache, under a hash of all that they are made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cupola import storage
from cupola.display import Display
from cupola.errors import CupolaError


@contextmanager
def only_one(target: Path, what: str, display: Display) -> Iterator[None]:
    """One process at a time makes `target`; whoever else wants it waits, and says so.

    Args:
        what: how people call it.

    Raises:
        CupolaError: its folder is not writable.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            display.say(f"another process is making {what}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise CupolaError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def build_once(
    target: Path, build: Callable[[], None], display: Display, check: Callable[[], object] | None = None
) -> bool:
    """Make `target` if it is not there.

    Args:
        build: makes the folder whole, by `storage.new_folder`.
        check: raises CupolaError if the folder can't be used; by default its files are compared in full.

    Returns:
        whether it was built now.
    """
    check = check or (lambda: storage.verify(target))
    with only_one(target, str(target), display):
        if target.exists():
            try:
                check()
                return False
            except CupolaError as error:
                display.warn(f"{error.problem}; it is made again")
        build()
        return True
