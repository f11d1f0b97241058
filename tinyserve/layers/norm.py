"""RMSNorm and LayerNorm with the residual addition fused into them."""

from dataclasses import dataclass

from torch import Tensor

from tinyserve import ops


@dataclass(frozen=True, eq=False)
class RMSNorm:
    weight: Tensor  # [C]
    eps: float

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises x [T, C]; with `residual` [T, C], adds x to it in place and normalises the sum."""
        return ops.rms_norm(x, self.weight, self.eps, residual)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    weight: Tensor  # [C]
    bias: Tensor | None  # [C]
    eps: float

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises x [T, C]; with `residual` [T, C], adds x to it in place and normalises the sum."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual)
