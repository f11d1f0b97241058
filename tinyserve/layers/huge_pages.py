"""Memory in huge pages, for what every decode step reads from end to end: weights, and the keys and values.

A processor looks up one address translation per page, and its prefetching stops at a page's end; pages of 2 MB in
place of 4 KB leave little of both. Linux hands them out where it is asked to (transparent huge pages on `madvise`, its
usual setting); elsewhere this is plain memory.
"""

import math
import mmap

import torch
from torch import Tensor

PAGE_BYTES = 2 << 20
CHUNK_BYTES = 64 << 20  # asked of the system at once
ALIGNMENT = 64  # a line of the cache


def huge_bytes(size: int) -> Tensor:
    """uint8 [size] zeros on a page's start; mapped on first touch."""
    memory = mmap.mmap(-1, size + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages stay small
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE_BYTES
    return whole[start : start + size]


class HugePages:
    """Places tensors one behind the other, in the order in which a step reads them."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor on the CPU, contiguous."""
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Room for a tensor; the memory lives as long as any tensor in it."""
        size = math.prod(shape) * dtype.itemsize
        if self._used + size > len(self._chunk):
            self._chunk = huge_bytes(max(CHUNK_BYTES, math.ceil(size / PAGE_BYTES) * PAGE_BYTES))
            self._used = 0
        part = self._chunk[self._used : self._used + size]
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return part.view(dtype).view(shape)
