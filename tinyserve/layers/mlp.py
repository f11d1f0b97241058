"""The gated feed-forward block: down(silu(gate(x)) * up(x)), gate and up in one matrix."""

from dataclasses import dataclass

from torch import Tensor

from tinyserve import ops
from tinyserve.layers.linear import LinearLayer


@dataclass(frozen=True, eq=False)
class GatedMLP:
    gate_up: LinearLayer  # [2I, C]: gate rows, then up rows
    down: LinearLayer  # [C, I]

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, C] -> [T, C]."""
        return self.down(ops.silu_mul(self.gate_up(x)))
