"""Every implementation of attention by name, made where this machine can run it."""

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.attention.peers.peer import Implementation
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable

OURS, TWO_OPS, FUSED = "tinyserve", "two-ops", "fused"
NAMES = (OURS, TWO_OPS, FUSED, "fa3", "flashinfer", "sdpa", "varlen")


def make(name: str, folder: PeerFolder, device: str) -> Implementation:
    """Raises Unavailable with the reason, also for what goes wrong while a peer is imported."""

    def load(module: str) -> Any:
        return importlib.import_module(f"benchmarks.attention.peers.{module}")

    makers: dict[str, Callable[[], Implementation]] = {
        OURS: lambda: load("ours").PagedAttention(device),
        TWO_OPS: lambda: load("ours").TwoOps(device),
        FUSED: lambda: load("ours").Fused(device),
        "fa3": lambda: load("fa3").FlashAttention3(folder),
        "flashinfer": lambda: load("flashinfer").FlashInfer(folder),
        "sdpa": lambda: load("sdpa").Sdpa(),
        "varlen": lambda: load("sdpa").Varlen(),
    }
    try:
        return makers[name]()
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
