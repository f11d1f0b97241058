"""What runs the emulator's own kernels: the emulator, in several orders of threads and blocks, or a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    ops: Any
    device: str
    seeds: range

    def wrong_seeds(self, check: Callable[[], bool]) -> list[int]:
        """The orders of threads for which `check` finds a wrong result, or the emulator a mistake."""
        wrong = []
        for seed in self.seeds:
            if self.device == "cpu":
                self.ops.set_seed(seed)
            try:
                right = check()
            except RuntimeError:
                if self.device == "cuda":
                    raise
                right = False
            if not right:
                wrong.append(seed)
        return wrong
