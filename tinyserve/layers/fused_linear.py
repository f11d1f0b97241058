"""4-bit layers whose kernel also does what stands around the product in a block: norm, SiLU and addition, as on GPUs.

See ops.w4a16_fuses for where; models/weights.py chooses them there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tinyserve import ops
from tinyserve.layers.linear import FusedProduct, W4A16Linear
from tinyserve.layers.norm import RMSNorm

GATE_ROWS = 8  # of the gate and then as many of the up projection: a tile of the kernels has 16


@dataclass(frozen=True, eq=False)
class FusedLinear(W4A16Linear):
    silu_mul: ClassVar[bool] = False

    @property
    def fused(self) -> FusedProduct:
        return self

    def __call__(self, x: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None) -> Tensor:
        """See FusedProduct."""
        norm_weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        return ops.w4a16_linear(x, self.weight, self.bias, residual, self.silu_mul, norm_weight, eps)


@dataclass(frozen=True, eq=False)
class GatedLinear(FusedLinear):
    """A gate and an up projection [I, K], I a multiple of GATE_ROWS: gives silu(gate) * up."""

    silu_mul: ClassVar[bool] = True

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        """Gate and up [I, ...] in tiles of both, as silu_mul of ops.w4a16_gemm wants them -> [2I, ...]."""
        return torch.stack([part.unflatten(0, (-1, GATE_ROWS)) for part in parts], dim=1).flatten(0, 2)

    @property
    def out_features(self) -> int:
        return self.weight.n // 2
