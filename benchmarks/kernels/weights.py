"""A random 4-bit weight, as every implementation gets it: codes, scales and zeros before any packing."""

import torch
from torch import Tensor

from awq.quantize import QuantConfig, QuantizedTensor


def random_weight(n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> QuantizedTensor:
    """The same one at every call for a device; products with it are of the size of the activations."""
    random = torch.Generator(device).manual_seed(n * 31 + k)
    groups = (n, k // group_size)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device=device, generator=random)
    zeros = torch.randint(4, 12, groups, dtype=torch.uint8, device=device, generator=random)
    scales = (torch.rand(groups, device=device, generator=random) + 0.5) * (0.2 * k**-0.5)
    return QuantizedTensor(codes, scales.to(dtype), zeros, QuantConfig(4, group_size))


def random_activations(rows: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    random = torch.Generator(device).manual_seed(rows)
    return torch.randn(rows, k, device=device, generator=random).to(dtype)
