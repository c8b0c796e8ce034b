"""The device a process computes on, in which precision, and the memory it has drawn."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

Precision = Literal["fp32", "bf16"]


def default_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a module computes: "bf16" is autocast, "fp32" the parameters' own dtype."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of the peak. Where the system can't (not Linux), the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point since the last reset: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
