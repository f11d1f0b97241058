"""What a machine allows at best: its copy bandwidth and its rate of multiplications, measured, and a product's limit.

The limit of a W4A16 product counts the fewest bytes that hold the weight (4 bits a code, 16 bits a scale, 4 bits a
zero) and x and y once, whatever more an implementation's layout has: it is the same for all of them.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from benchmarks.kernels.timing import Timer, median_seconds
from benchmarks.shapes import Shape

COPY_BYTES = 1 << 30  # of each of two buffers: far beyond any cache
RATE_SIZE = 8192  # rows, columns and depth of the matrix product


class Work(Protocol):
    """What a limit is worked out from."""

    @property
    def dtype(self) -> str:
        """Whose rate of multiplications counts."""

    @property
    def total_bytes(self) -> int:
        """The fewest that have to pass, read and written."""

    @property
    def operations(self) -> int:
        """A multiplication and an addition counting as two."""


@dataclass(frozen=True)
class Case:
    """One product: x [rows, K] times the weight [N, K] transposed."""

    shape: Shape
    rows: int
    dtype: str  # of x and y: float16 or bfloat16
    group_size: int = 128

    def __str__(self) -> str:
        return f"{self.shape} M={self.rows} {self.dtype} g{self.group_size}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def weight_bytes(self) -> int:
        n, k = self.shape.n, self.shape.k
        return n * k // 2 + n * (k // self.group_size) * 5 // 2

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + 2 * self.rows * (self.shape.n + self.shape.k)

    @property
    def operations(self) -> int:
        """A multiplication and an addition counting as two."""
        return 2 * self.rows * self.shape.n * self.shape.k


@dataclass(frozen=True)
class Ceilings:
    """Measured on the machine, before anything else."""

    copy_bytes_per_s: float  # bytes read plus bytes written
    flops_per_s: dict[str, float]  # by dtype, torch's own product of random data

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in self.flops_per_s.items())
        return f"copy {self.copy_bytes_per_s / 1e9:.0f} GB/s, {rates}"

    def limit_s(self, case: Work) -> float:
        return max(self.memory_s(case), self.compute_s(case))

    def memory_s(self, case: Work) -> float:
        return case.total_bytes / self.copy_bytes_per_s

    def compute_s(self, case: Work) -> float:
        return case.operations / self.flops_per_s[case.dtype]


def measure_ceilings(
    timer: Timer, dtypes: list[str], copy_bytes: int = COPY_BYTES, rate_size: int = RATE_SIZE
) -> Ceilings:
    flops_per_s = {dtype: _flops_per_s(timer, getattr(torch, dtype), rate_size) for dtype in dtypes}
    return Ceilings(_copy_bytes_per_s(timer, copy_bytes), flops_per_s)


def _copy_bytes_per_s(timer: Timer, num_bytes: int) -> float:
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(timer, lambda: target.copy_(source))


def _flops_per_s(timer: Timer, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(timer, lambda: torch.mm(a, b, out=out))
