"""What probe.py and a run ask of the W4A16 products: their cases, implementations and checks."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks.kernels.comparison import answer, read_case
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.registry import make

__all__ = ["answer", "make", "parts", "read_case"]


def parts(name: str, cases: Sequence[Case]) -> list[list[Case]]:
    """What one process tries: all, or the cases of one shape where the implementation compiles for each."""
    if name not in registry.COMPILE_PER_SHAPE:
        return [list(cases)]
    return [list(same) for _, same in groupby(cases, lambda case: case.shape)]
