"""Every implementation by name, made where this machine can run it."""

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Implementation, Unavailable

OURS = "tinyserve"
BASELINE = "cublas"
NAMES = (OURS, BASELINE, "tinygemm", "marlin", "machete", "humming", "torchao", "triton")
COMPILE_PER_SHAPE = {"humming", "triton"}  # for seconds, at first use


def make(name: str, folder: PeerFolder, device: str) -> Implementation:
    """Raises Unavailable with the reason, also for what goes wrong while a peer is imported."""
    try:
        return _make(name, folder, device)
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error


def _make(name: str, folder: PeerFolder, device: str) -> Implementation:
    def load(module: str) -> Any:
        return importlib.import_module(f"benchmarks.kernels.peers.{module}")

    def vllm_ops() -> Any:
        return load("vllm_ops").VllmOps(folder)

    makers: dict[str, Callable[[], Implementation]] = {
        OURS: lambda: load("ours").Ours(device),
        BASELINE: lambda: load("cublas").Cublas(),
        "tinygemm": lambda: load("tinygemm").Tinygemm(),
        "marlin": lambda: load("marlin").Marlin(vllm_ops()),
        "machete": lambda: load("machete").Machete(vllm_ops()),
        "humming": lambda: load("humming").Humming(folder),
        "torchao": lambda: load("torchao").Torchao(folder),
        "triton": lambda: load("triton_kernel").TritonKernel(),
    }
    return makers[name]()
