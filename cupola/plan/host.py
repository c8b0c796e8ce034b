"""This machine as a device of the planner, measured on the spot: matrix products and a copy of memory, in a
process of its own (the planner itself loads no torch), and kept in the cache.

    <cache>/host/<hash of processor, cores and torch>.json
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from cupola import storage
from cupola.errors import CupolaError
from cupola.machine import usable_cores
from cupola.paths import cache_root

TIMEOUT = 120.0
"""Seconds, beyond which something is wrong: it takes about five, most of them to load torch."""


@dataclass(frozen=True)
class Host:
    """What was measured.

    Attributes:
        fp32, bf16: FLOP/s of the fastest matrix product (`train.peak`), with all cores.
        bandwidth: bytes/s that a copy reads and writes.
        threads: of the measurement.
        torch: its version.
        date: when, as 2026-05-01.
    """

    fp32: float
    bf16: float
    bandwidth: float
    threads: int
    torch: str
    date: str

    @property
    def source(self) -> str:
        """Where the figures are from, for people."""
        return f"measured here on {self.date}, torch {self.torch}, {self.threads} threads"


def path() -> Path | None:
    """Where the measurement of this machine lies, or would; None without torch."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    facts = [platform.node(), _processor(), usable_cores(), os.environ.get("OMP_NUM_THREADS", ""), version]
    return cache_root() / "host" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


def measured() -> Host | None:
    """What an earlier `measure` found; None if there was none, or it can't be read."""
    where = path()
    try:
        return None if where is None else Host(**json.loads(where.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def measure() -> Host:
    """Measure, about a second each of fp32 and bf16, and keep it.

    Raises:
        CupolaError: torch is not here, or it fails.
    """
    where = path()
    if where is None:
        raise CupolaError("--measure: needs torch, which is not installed here")
    command = [sys.executable, "-m", "cupola.train.peak"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        found = json.loads(done.stdout)
        host = Host(**found, date=time.strftime("%Y-%m-%d"))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CupolaError(f"--measure: fails ({said[-1] if said else type(error).__name__})") from error
    where.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(where, asdict(host))
    return host


def notes(device: str) -> list[str]:
    """What a person should hear of a device of that name: that this machine's speed is a guess, if it is."""
    if device != "cpu" or measured() is not None:
        return []
    return ["the speed of this machine is an assumption; --measure measures it, once for all plans"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
