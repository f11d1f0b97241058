"""vLLM's library of ops, loaded without vLLM."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Unavailable

LIBRARY = "vllm_ops_sm90"


class VllmOps:
    version = "vLLM's op library"

    def __init__(self, folder: PeerFolder) -> None:
        try:
            torch.ops.load_library(folder.library(LIBRARY))
        except OSError as error:
            raise Unavailable(f"{LIBRARY} does not load: {error.__cause__ or error}") from error
        self.uint4: int = folder.module("scalar_type").scalar_types.uint4.id

    def get(self, name: str) -> Callable[..., Any]:
        try:
            op: Callable[..., Any] = getattr(torch.ops._C, name).default
        except AttributeError as error:
            raise Unavailable(f"{LIBRARY} has no {name}") from error
        return op
