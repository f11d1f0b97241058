"""Which GPU a measurement belongs to, with which driver and compiler, and how it stood."""

import re
import subprocess
from typing import Any

import torch

STATE = ("driver_version", "clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu", "compute_mode")


def describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties("cuda")
    state = _output(["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader", "-i", "0"])
    nvcc = re.search(r"release ([\d.]+)", _output(["nvcc", "--version"]) or "")
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda_of_torch": torch.version.cuda,
        "nvcc": nvcc[1] if nvcc else None,
        "state": dict(zip(STATE, (value.strip() for value in state.split(",")), strict=False)) if state else None,
    }


def slug(name: str) -> str:
    """For a file's name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
