"""What Cupola runs on: the cores it may use, and the facts that a run records."""

import os
import platform
import time
from typing import Any

from cupola import __version__


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import torch

    return {"cupola": __version__, "torch": torch.__version__, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """The machine, in a few words."""
    return {"platform": platform.platform(), "processors": os.cpu_count(), "host": platform.node()}


class Elsewhere:
    """Watches, from when it is made, how much other programs use the cores of this machine."""

    def __init__(self) -> None:
        self._then = self._now()

    def cores(self) -> float:
        """That others used on average since then, what a hypervisor gave to other machines included."""
        now = self._now()
        seconds, busy, own = (after - before for after, before in zip(now, self._then, strict=True))
        return max(0.0, busy - own) / seconds if seconds > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of the clock, of all cores at work, of this process and its children."""
        import psutil

        used, own = psutil.cpu_times(), os.times()
        idle = used.idle + getattr(used, "iowait", 0.0)
        counted_twice = getattr(used, "guest", 0.0) + getattr(used, "guest_nice", 0.0)
        busy = sum(used) - idle - counted_twice
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system
