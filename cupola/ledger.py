"""The ledger of a run: what happened, in order, one JSON line an event, never rewritten.

Each line is on the disk before the program goes on.
"""

import time
from pathlib import Path
from typing import Any

from cupola import json_lines


class Ledger:
    """Append-only events of one run, in `ledger.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> None:
        """Write one event with the time (seconds since 1970, UTC) and its facts.

        Raises:
            CupolaError: the file cannot be written.
        """
        json_lines.append(self.path, {"time": round(time.time(), 3), "event": event, **facts})

    def events(self) -> list[dict[str, Any]]:
        """Every whole event, oldest first."""
        return json_lines.read_whole(self.path)
