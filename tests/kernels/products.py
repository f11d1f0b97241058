"""What the tests of the matrix products share: tolerances, and results in memory known to be dirty."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}  # ||out - ref|| / ||ref||


def poison_memory(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Fills and frees tensors of a result's size, so that an element the kernel forgets is not right by luck."""
    for _ in range(4):
        torch.full(shape, float("nan"), dtype=dtype, device=device)


def check(multiply: Callable[[], Tensor], expected: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """Runs `multiply` and compares every element's part in the error with what the dtype allows."""
    poison_memory(tuple(expected.shape), dtype, device)
    out = multiply()
    assert (out.shape, out.dtype) == (expected.shape, dtype)
    error = (out.double().cpu() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e}"
    return out
