"""Files of JSON lines: one whole line a record, appended, never rewritten in place.

A line that a kill tore is closed off when the next one is appended, and readers are told of it. A number
that is not finite becomes null, since JSON has no NaN.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cupola.errors import CupolaError

Record = dict[str, Any]


def as_line(record: Record) -> str:
    """A record as strict JSON, without the newline; a byte of a path that is not UTF-8 as `\\udcXX`."""
    line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return line.encode("utf-8", "backslashreplace").decode()


def append(path: Path, record: Record) -> None:
    """Add a record and wait until it is on the disk.

    Raises:
        CupolaError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(as_line(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CupolaError(f"{path}: cannot be written ({error.strerror})") from error


def read(path: Path) -> Iterator[Record | None]:
    """Every record, oldest first; None for a line that is torn or no record. No file: nothing.

    Raises:
        CupolaError: the file is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield value if isinstance(value, dict) else None
    except FileNotFoundError:
        return
    except OSError as error:
        raise CupolaError(f"{path}: cannot be read ({error.strerror})") from error


def read_whole(path: Path) -> list[Record]:
    """Every record that can be read, oldest first."""
    return [record for record in read(path) if record is not None]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _ends_with_newline(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
