"""A piece of work on a GPU, recorded once and done again with a single launch: the GPU's counterpart of ops.Tape.

Kernels that are launched as dependent on the one before (csrc/cuda/launch.cuh) keep that when they are captured: the
edge between the two nodes is a programmatic one (CUDA 12.3 and up). It knows no model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2  # kernels are loaded and workspaces made on first use, which a capture does not allow


class _Borrowed:
    """A tensor's memory without its ownership, as torch.as_tensor reads it."""

    def __init__(self, tensor: Tensor) -> None:
        # the interface has no name for bfloat16
        self.__cuda_array_interface__: Any = tensor.view(torch.int16).__cuda_array_interface__


class CudaGraph:
    """The kernels of one piece of work on one GPU.

    Between two replays only the contents of what it reads may change, and nothing in it may wait for the GPU or read
    its memory on the host: that raises here. Graphs share a pool, so no two of them may run at once, and the result of
    one is valid until another is replayed. All are captured on one stream and so share the arrival counters of that
    stream (csrc/cuda/stream_k.cuh): a second reason to replay them one after another, on one stream.

    Args:
        work: what to do; its result has 16-bit elements. It is done WARM_UPS times now, on what the inputs hold.
        pool: torch.cuda.graph_pool_handle(), where intermediate tensors and the result lie.
        stream: to capture on, not the current one.

    Raises:
        RuntimeError: the work cannot be captured.
        torch.OutOfMemoryError: there is no room for its tensors.
    """

    def __init__(self, work: Callable[[], Tensor], pool: Any, stream: torch.cuda.Stream) -> None:
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):  # which is left where a capture fails, too; torch.cuda.graph would stay in it
            for _ in range(WARM_UPS):
                work()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        current.wait_stream(stream)
        # Given back to the pool, so that the next graph's tensors may lie there: results of many sizes, each of a
        # vocabulary for every row, would take hundreds of megabytes otherwise.
        self._result = torch.as_tensor(_Borrowed(result), device=result.device).view(result.dtype)

    def replay(self) -> Tensor:
        """Does the work again on the current stream; returns its result, in the same memory each time."""
        self._graph.replay()
        return self._result
