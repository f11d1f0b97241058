"""A weight of 8 bits by activations of 16, computed by the kernels of 4 bits: half the bytes of a 16-bit output layer.

A code of 8 bits is two of 4 side by side, code = 16 * high + low, so that with the scale s of its group

    w = (code - 128) * s = (high - 8) * 16 s + (low - 0) * s

and x @ w^T is the product of [x | x] with a 4-bit weight of twice the columns: the high halves, whose scales are 16 s
and zeros 8, then the low ones with s and 0. 16 s is exact where s is, so that nothing is rounded but w itself.

It reads half the bytes of 16 bits, which is what a decode step of few rows takes, and multiplies twice as often, which
counts where rows are so many that products take the time: wherever all of a prompt's logits are asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from tinyserve import ops
from tinyserve.layers.linear import W4A16Linear

LARGEST = 127  # of a code - 128
ROWS_AT_ONCE = 4096  # while a weight is rounded; bounds the memory for it


@dataclass(frozen=True, eq=False)
class W8A16Linear(W4A16Linear):
    """The 8-bit weight [N, K] as a 4-bit one [N, 2K]."""

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Rounds weight [N, K] in groups of 128 of a row, or of 64 or 32 where K asks for it, scales in its dtype.

        Raises:
            ValueError: K is not a multiple of 32.
        """
        k = weight.shape[1]
        group = next((size for size in reversed(ops.GROUP_SIZES) if k % size == 0), None)
        if group is None:
            raise ValueError(f"a weight in 8 bits must be [N, K] with K a multiple of 32, got {list(weight.shape)}")
        parts = [_halves(rows, group) for rows in weight.split(ROWS_AT_ONCE)]
        codes, scales, zeros = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return cls(ops.w4a16_pack(codes, scales, zeros, dtype=weight.dtype), bias)

    @property
    def num_weights(self) -> int:
        return self.weight.n * self.weight.k // 2

    @property
    def own_kernel(self) -> bool:
        """Not on a CPU: that x is put beside itself is torch's doing, which a tape would leave out."""
        return self.weight.qweight.is_cuda

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        return ops.w4a16_linear(torch.cat([x, x], dim=-1), self.weight, self.bias)


def _halves(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [N, K] -> codes [N, 2K], scales and zeros [N, 2K/G]."""
    groups = weight.float().unflatten(1, (-1, group))
    scales = (groups.abs().amax(-1) / LARGEST).to(weight.dtype)  # codes are of the scale as it is kept
    steps = scales.float().unsqueeze(-1)
    codes = torch.where(steps > 0, groups / steps, 0).round().clamp(-LARGEST, LARGEST).flatten(1) + 128
    codes = codes.to(torch.uint8)
    zeros = torch.zeros_like(scales, dtype=torch.uint8)
    return torch.cat([codes >> 4, codes & 15], 1), torch.cat([scales * 16, scales], 1), torch.cat([zeros + 8, zeros], 1)
