"""What an implementation of the W4A16 product looks like to the benchmark, and why one may be missing."""

from typing import Protocol

from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case

Packed = tuple[Tensor, ...]  # one copy of a weight, in the layout of one implementation


class Unavailable(Exception):
    """The implementation is not on this machine, or does not do this case; the message says what is missing."""


class Implementation(Protocol):
    """Raises Unavailable at its making where it cannot run at all."""

    name: str
    version: str

    def pack(self, weight: QuantizedTensor) -> Packed: ...

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        """[rows, N]; may be captured in a CUDA graph."""
