"""A random 4-bit weight, as every implementation gets it: codes, scales and zeros before any packing."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """w[n, k] = (codes[n, k] - zeros[n, k / G]) * scales[n, k / G]."""

    codes: Tensor  # uint8 [N, K], 0..15
    scales: Tensor  # [N, K/G], the activations' dtype, so that all implementations have the same weight
    zeros: Tensor  # uint8 [N, K/G], 0..15

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    @property
    def group_size(self) -> int:
        return self.k // self.scales.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.scales.dtype

    def dequantized(self) -> Tensor:
        """fp32 [N, K]."""
        groups = self.codes.view(self.n, -1, self.group_size).float()
        return ((groups - self.zeros.float().unsqueeze(2)) * self.scales.float().unsqueeze(2)).view(self.n, self.k)


def random_weight(n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> QuantizedWeight:
    """The same one at every call for a device; products with it are of the size of the activations."""
    random = torch.Generator(device).manual_seed(n * 31 + k)
    groups = (n, k // group_size)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device, generator=random)
    zeros = torch.randint(4, 12, groups, dtype=torch.uint8, device=device, generator=random)
    scales = (torch.rand(groups, device=device, generator=random) + 0.5) * (0.2 * k**-0.5)
    return QuantizedWeight(codes, scales.to(dtype), zeros)


def random_activations(rows: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    random = torch.Generator(device).manual_seed(rows)
    return torch.randn(rows, k, device=device, generator=random).to(dtype)
