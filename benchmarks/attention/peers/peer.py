"""What an implementation of attention over a paged cache looks like to the benchmark."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from benchmarks.attention.problem import Cache, Problem

Attend = Callable[[], Tensor]  # the result [T, H, D]; may be captured in a CUDA graph


class Implementation(Protocol):
    """Raises Unavailable at its making where it cannot run at all."""

    name: str
    version: str

    def prepare(self, problem: Problem, cache: Cache) -> Attend:
        """All that is done once and not timed: other layouts, plans. Raises Unavailable for a case it does not do."""
