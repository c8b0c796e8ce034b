"""The ledger of a run: what happened, in order, one JSON line an event, never rewritten.

Each line is flushed to the disk before the program goes on. A line that a kill tore is closed off when the
next one is written, and readers pass over it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from cupola.errors import CupolaError


class Ledger:
    """Append-only events of one run, in `ledger.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> None:
        """Write one event with the time (seconds since 1970, UTC) and its facts.

        Raises:
            CupolaError: the file cannot be written.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and not _ends_with_newline(file):
                    file.write(b"\n")
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CupolaError(f"{self.path}: cannot be written ({error.strerror})") from error

    def events(self) -> list[dict[str, Any]]:
        """Every whole event, oldest first."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_bytes().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
