"""What a step of a model is held against: how fast memory is read and how fast torch's own product is, measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.kernels.limits import measure_ceilings
from benchmarks.kernels.timing import CudaGraphTimer

BANDWIDTH_ELEMENTS = 1 << 27  # fp32: 512 MB, far beyond any cache
PEAK_SIZE = 1024  # rows, columns and depth of the matrix product
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # of the product


@dataclass(frozen=True)
class Limits:
    read_bytes_per_s: float  # on a GPU: read and written by a copy
    flops_per_s: float  # in the device's DTYPE, a multiplication and an addition counting as two


def measure_limits(device: str, repeats: int = 7) -> Limits:
    """The best of several tries on a CPU, where others can only make it slower; the median on a GPU."""
    if device == "cuda":
        ceilings = measure_ceilings(CudaGraphTimer(), [DTYPE[device]])
        torch.cuda.empty_cache()
        return Limits(ceilings.copy_bytes_per_s, ceilings.flops_per_s[DTYPE[device]])
    matrix, vector = torch.ones(BANDWIDTH_ELEMENTS // 4096, 4096), torch.ones(4096)
    square = torch.ones(PEAK_SIZE, PEAK_SIZE)
    read = min(_seconds(lambda: torch.mv(matrix, vector)) for _ in range(repeats))
    multiply = min(_seconds(lambda: torch.mm(square, square)) for _ in range(repeats))
    return Limits(4 * BANDWIDTH_ELEMENTS / read, 2 * PEAK_SIZE**3 / multiply)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
