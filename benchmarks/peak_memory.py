"""The most memory that this process has had, on the machine or in a GPU."""

import contextlib
import re
from pathlib import Path

import torch


def peak_memory_bytes(device: str = "cpu") -> int | None:
    """The most that this process has had in memory so far; None: not known here.

    Args:
        device: "cuda": in torch's tensors on the GPU; else in the machine's memory, files mapped into it included.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def forget_peak_memory(device: str = "cpu") -> None:
    """What peak_memory_bytes tells begins anew, where the system can do that."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
