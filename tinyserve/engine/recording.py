"""Decode steps that are recorded once and replayed: which numbers of requests, when, and where their memory is.

A step of one token for each of a few requests has its kernels done sooner than Python can ask for them. On a CPU it is
recorded by ops.Tape, for exactly the numbers of requests that come, when they come first: that costs one step. On a GPU
it is captured as a CUDA graph before the first request, for some numbers of requests; a step runs in the next larger
one, its missing rows padded by model_runner.py. Neither knows what a step computes.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from tinyserve import ops
from tinyserve.engine.cuda_graph import CudaGraph
from tinyserve.engine.memory import is_out_of_memory
from tinyserve.layers.huge_pages import huge_bytes
from tinyserve.models.language_model import LanguageModel

_log = logging.getLogger(__name__)

Work = Callable[[], Tensor]

MAX_TAPED = 64  # requests of a step on a CPU; with more, what is between the kernels is nothing beside them
TAPE_BYTES = 256 << 20  # for the intermediate tensors of the largest such step
MAX_CAPTURED = 256  # requests of a step on a GPU; with more, kernels take longer than their launches


class Recordings(Protocol):
    def size(self, num_requests: int) -> int | None:
        """Requests that a decode step of `num_requests` is run with; None: it is not recorded."""
        ...

    def run(self, size: int, work: Work) -> Tensor:
        """Does the work of a step with `size` requests, always the same for one size; its result, until the next."""
        ...

    def prepare(self, work_of: Callable[[int], Work]) -> None:
        """Records what has to be recorded before the first request; `work_of` readies the inputs of a size too."""
        ...


def recordings(model: LanguageModel, max_requests: int) -> Recordings | None:
    """The kind that `model` can be recorded with, for steps of up to max_requests; None: it cannot be.

    Its products have to be our own kernels: on a CPU a tape holds no others, and on a GPU another library's may wait
    for the GPU, or run on a stream that is not captured.
    """
    if not model.only_own_kernels:
        return None
    if model.device.type == "cuda":
        return Graphs(model.device, max_requests)
    return Tapes() if ops.can_record(model.device) else None


class Tapes:
    """A CPU's: recorded when they are needed first."""

    def __init__(self) -> None:
        self._tapes: dict[int, ops.Tape] = {}
        self._memory = huge_bytes(TAPE_BYTES)  # mapped on first touch

    def size(self, num_requests: int) -> int | None:
        return num_requests if num_requests <= MAX_TAPED else None

    def run(self, size: int, work: Work) -> Tensor:
        tape = self._tapes.get(size)
        if tape is not None:
            return tape.replay()
        self._tapes[size] = tape = ops.Tape(work, self._memory)
        return tape.result

    def prepare(self, work_of: Callable[[int], Work]) -> None:
        pass


def bucket_sizes(max_requests: int) -> list[int]:
    """Numbers of requests to capture, ascending.

    Up to 8 rows one kernel reads each weight once for all of them (w4a16_gemv); above, the tensor cores take rows in
    tiles of 8 or 16, so that a step padded to the next multiple does hardly more; attention skips padding.
    """
    limit = min(max_requests, MAX_CAPTURED)
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, MAX_CAPTURED + 1, 16)]
    return [*(size for size in sizes if size < limit), limit]


class Graphs:
    """A GPU's: captured by `prepare`, in one pool of memory; without it nothing is recorded."""

    def __init__(self, device: torch.device, max_requests: int) -> None:
        self._device = device
        self._wanted = bucket_sizes(max_requests)
        self._graphs: dict[int, CudaGraph] = {}
        self._sizes: list[int] = []  # captured, ascending

    def size(self, num_requests: int) -> int | None:
        index = bisect_left(self._sizes, num_requests)
        return self._sizes[index] if index < len(self._sizes) else None

    def run(self, size: int, work: Work) -> Tensor:
        return self._graphs[size].replay()

    def prepare(self, work_of: Callable[[int], Work]) -> None:
        """Captures the largest first: the others then find room in its memory."""
        before, _ = torch.cuda.mem_get_info(self._device)
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
        failed: dict[int, Exception] = {}
        for size in reversed(self._wanted):
            try:
                self._graphs[size] = CudaGraph(work_of(size), pool, stream)
            except Exception as error:
                failed[size] = error
                if not is_out_of_memory(error):
                    break
        self._sizes = sorted(self._graphs)
        after, _ = torch.cuda.mem_get_info(self._device)
        _log.info(
            "%d CUDA graphs take %.0f MB, for decode steps of %s requests",
            len(self._sizes),
            (before - after) / 1e6,
            ", ".join(map(str, self._sizes)),
        )
        if failed:
            _log.warning(
                "decode steps of more than %d requests run without CUDA graphs, slower: %s",
                self._sizes[-1] if self._sizes else 0,
                next(iter(failed.values())),
            )
