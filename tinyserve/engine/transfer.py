"""Copies between the host and a step's device that wait for nothing: through pinned memory, in the stream's order.

On a CPU there is nothing to copy. It knows arrays and tensors, not what they mean.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on `device`; on a CPU the same memory."""
    tensor = torch.from_numpy(array)
    # torch keeps pinned memory that a copy still reads, whoever drops the tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Download:
    """Tensors of one device on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [_to_host(tensor) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in their order, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
