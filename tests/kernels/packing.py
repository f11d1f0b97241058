"""Quantized weights for the kernel tests, and the CPU's packed layout read back from its description in kernels.h."""

import torch
from torch import Tensor

TILE = 32


def make_quantized(
    n: int, k: int, group_size: int, scale_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:
    """codes uint8 [N, K], scales [N, K/G], zeros uint8 [N, K/G], random."""
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, k // group_size) * 0.02 + 0.005).to(scale_dtype)
    zeros = torch.randint(0, 16, (n, k // group_size), dtype=torch.uint8)
    return codes, scales, zeros


def unpack(qweight: Tensor, qparams: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """What w4a16_pack was given, element by element from the layout's words and bytes."""
    words = qweight.long() & 0xFFFFFFFF  # [tiles, K/8, 32]
    codes = torch.stack([(words >> (4 * i)) & 0xF for i in range(8)], dim=2)  # [tiles, K/8, 8, 32]
    codes = codes.flatten(1, 2).transpose(1, 2).flatten(0, 1)
    scale_bytes = qparams[..., :-TILE].contiguous()
    scales = scale_bytes.view(torch.float16 if scale_bytes.shape[-1] == 2 * TILE else torch.float32)
    per_row = [t.transpose(1, 2).flatten(0, 1)[:n] for t in (scales, qparams[..., -TILE:])]
    return codes[:n].to(torch.uint8), per_row[0], per_row[1]
