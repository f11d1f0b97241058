"""Tells an exhausted memory from other failures."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for it on GPUs only; its CPU allocator and C++ say it in words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("allocate memory", "bad_alloc"))
