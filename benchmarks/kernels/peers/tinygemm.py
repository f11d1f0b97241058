"""torch's own 4-bit product, torch._weight_int4pack_mm (tinygemm): bfloat16, any group of 32 to 256.

w = (code - 8) * scale + zero, with one pair {scale, zero} for a group of a row.
"""

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.peer import Packed, Unavailable

MIDDLE = 8
INNER_K_TILES = 8  # 16-wide tiles of k that a thread reads at once: the most there are


class Tinygemm:
    name = "tinygemm"

    def __init__(self) -> None:
        self.version = f"torch {torch.__version__}"

    def pack(self, weight: QuantizedTensor) -> Packed:
        if weight.scales.dtype != torch.bfloat16:
            raise Unavailable("takes bfloat16 only")
        if weight.codes.is_cuda:
            pairs = weight.codes[:, ::2] << 4 | weight.codes[:, 1::2]
            packed = torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_K_TILES)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), INNER_K_TILES)
        return packed, scale_zero_pairs(weight)

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        product = torch.ops.aten._weight_int4pack_mm if x.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
        return product(x, packed[0], case.group_size, packed[1])  # type: ignore[no-any-return]


def scale_zero_pairs(weight: QuantizedTensor) -> Tensor:
    """[K/G, N, 2]."""
    zeros = (MIDDLE - weight.zeros.float()) * weight.scales.float()
    return torch.stack([weight.scales, zeros.to(weight.scales.dtype)], dim=2).transpose(0, 1).contiguous()
