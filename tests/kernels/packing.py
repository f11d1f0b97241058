"""Quantized weights for the kernel tests, and the packed layouts read back from their descriptions in kernels.h."""

import torch
from torch import Tensor

from tinyserve.ops import PackedWeight

BITS_16 = (torch.float16, torch.bfloat16)


def make_quantized(
    n: int, k: int, group_size: int, scale_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:
    """codes uint8 [N, K], scales [N, K/G], zeros uint8 [N, K/G], random."""
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scales = (torch.rand(n, k // group_size) * 0.02 + 0.005).to(scale_dtype)
    zeros = torch.randint(0, 16, (n, k // group_size), dtype=torch.uint8)
    return codes, scales, zeros


def is_for_tensor_cores(weight: PackedWeight) -> bool:
    """Whether it is in the CUDA layout, which the emulated kernels read too, and not in the CPU's."""
    return weight.qparams.dtype in BITS_16


def unpack(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """What w4a16_pack was given and what it was padded with, element by element from the layout's words and bytes."""
    qweight, qparams = weight.qweight.cpu(), weight.qparams.cpu()
    return _unpack_tensor_cores(qweight, qparams) if is_for_tensor_cores(weight) else _unpack_cpu(qweight, qparams)


def _unpack_cpu(qweight: Tensor, qparams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    words = qweight.long() & 0xFFFFFFFF  # [tiles, K/8, 32]
    codes = torch.stack([(words >> (4 * i)) & 0xF for i in range(8)], dim=2)  # [tiles, K/8, 8, 32]
    codes = codes.flatten(1, 2).transpose(1, 2).flatten(0, 1)
    scale_bytes = qparams[..., :-32].contiguous()
    scales = scale_bytes.view(torch.float16 if scale_bytes.shape[-1] == 64 else torch.float32)
    per_row = [t.transpose(1, 2).flatten(0, 1) for t in (scales, qparams[..., -32:])]
    return codes.to(torch.uint8), per_row[0], per_row[1]


def _unpack_tensor_cores(qweight: Tensor, qparams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    words = qweight.long() & 0xFFFFFFFF  # [N/64, K/64, tile, lane, columns / 16]
    blocks_n, blocks_k = words.shape[:2]
    codes = torch.full((blocks_n, 4, 16, blocks_k, 4, 16), 255, dtype=torch.uint8)
    for lane in range(32):
        r, c = lane // 4, lane % 4 * 2
        for i, (row, column) in enumerate([(r, c), (r + 8, c), (r, c + 8), (r + 8, c + 8)]):
            for half in range(2):
                nibbles = (words[:, :, :, lane] >> (4 * i + 16 * half)) & 0xF  # [N/64, K/64, tile, columns / 16]
                codes[:, :, row, :, :, column + half] = nibbles.transpose(1, 2).to(torch.uint8)
    rows = qparams.permute(0, 2, 4, 3, 1, 5).reshape(blocks_n * 64, -1, 2)  # [N, groups, 2]: tile, half, r make a row
    return codes.reshape(blocks_n * 64, -1), rows[..., 0], rows.contiguous().view(torch.int16)[..., 1].to(torch.uint8)
