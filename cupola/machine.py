"""What Cupola runs on: the cores it may use, and the facts that a run records."""

import os
import platform
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
