"""Marlin, from vLLM's op library: weights as the second operand of mma.m16n8k16, in the order its lanes read them.

A tile of 16 k x 64 n is 128 words: lane by lane, each 4 words for 4 blocks of 16 n. A word holds the 8 codes of that
lane in two products of 16 k x 8 n; scales and zeros of 64 n stand in the order of a lane's columns.
"""

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import nibbles, vllm_ops
from benchmarks.kernels.peers.peer import Packed, Unavailable

TILE_K, TILE_N = 16, 64
LANES = 32
LANE_ROWS = (0, 1, 8, 9)  # k of a lane's codes in a tile, before the lane's own 2 * (lane % 4)
NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of 8 numbers in a word: neighbours stand 16 bits apart
LOCKS_PER_MULTIPROCESSOR = 4


class Marlin:
    name = "marlin"

    def __init__(self, ops: vllm_ops.VllmOps) -> None:
        self.version = ops.version
        self._product = ops.get("marlin_gemm")
        self._weight_type = ops.uint4
        multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
        self._locks = torch.zeros(multiprocessors * LOCKS_PER_MULTIPROCESSOR, dtype=torch.int32, device="cuda")

    def pack(self, weight: QuantizedTensor) -> Packed:
        if weight.n % TILE_N or weight.k % 128 or weight.group == weight.k:
            raise Unavailable("takes N of whole 64, K of whole 128, and groups smaller than K")
        return pack_codes(weight.codes), pack_scales(weight.scales), pack_zeros(weight.zeros)

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        codes, scales, zeros = packed
        return self._product(  # type: ignore[no-any-return]
            x, None, codes, None, scales, None, None, zeros, self._locks, self._weight_type,
            case.rows, case.shape.n, case.shape.k, False, True, False,
        )  # fmt: skip  # no atomic adds; sums over parts of k in fp32; zeros are integers


def pack_codes(codes: Tensor) -> Tensor:
    """uint8 [N, K] -> int32 [K/16, 2 * N]."""
    n, k = codes.shape
    lane = torch.arange(LANES, device=codes.device).unsqueeze(1)
    element = torch.tensor(NIBBLE_ORDER, device=codes.device)
    rows = 2 * (lane % 4) + torch.tensor(LANE_ROWS, device=codes.device)[element % 4]
    columns = lane // 4 + 8 * (element // 4)
    tiles = codes.view(n // TILE_N, 4, 16, k // TILE_K, TILE_K)  # [n-tile, block, column, k-tile, row]
    words = nibbles.pack_last(tiles.permute(3, 0, 1, 2, 4)[..., columns, rows])  # [k-tile, n-tile, block, lane]
    return words.transpose(2, 3).reshape(k // TILE_K, 2 * n)


def _lane_order(params: Tensor) -> Tensor:
    """[N, K/G] -> [K/G, N], the columns of each 64 in the order in which lanes need them: 0, 8, 16, .. 1, 9, .."""
    n, groups = params.shape
    return params.t().reshape(groups, n // TILE_N, 8, 8).transpose(2, 3).reshape(groups, n)


def pack_scales(scales: Tensor) -> Tensor:
    return _lane_order(scales).contiguous()


def pack_zeros(zeros: Tensor) -> Tensor:
    """uint8 [N, K/G] -> int32 [K/G, N/8]."""
    ordered = _lane_order(zeros)
    return nibbles.pack_last(ordered.view(ordered.shape[0], -1, nibbles.FACTOR)[..., list(NIBBLE_ORDER)])
