"""A plain W4A16 product in Triton: what a day's work with a tile language gives. Splits K where N and M are small.

Codes are int32 [K/8, N], 8 consecutive k in a word. A program computes one tile [BLOCK_M, BLOCK_N] over its part of K;
parts are summed in fp32 by torch.
"""

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import nibbles
from benchmarks.kernels.peers.peer import Packed, Unavailable

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise Unavailable(f"triton: {error}") from error

BLOCK_N, BLOCK_K = 64, 64
PROGRAMS_PER_MULTIPROCESSOR = 4  # aimed at when K is split
MULTIPROCESSORS = 132


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    y_ptr,
    rows,
    n,
    k,
    group_size,
    part_k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    in_k = tl.arange(0, BLOCK_K)
    shifts = (in_k % 8 * 4)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(part * part_k, min(k, (part + 1) * part_k), BLOCK_K):
        x = tl.load(x_ptr + m[:, None] * k + (start + in_k)[None, :], mask=m[:, None] < rows, other=0.0)
        words = tl.load(
            codes_ptr + ((start + in_k) // 8)[:, None] * n + column[None, :], mask=column[None, :] < n, other=0
        )
        group = start // group_size * n + column
        scales = tl.load(scales_ptr + group, mask=column < n, other=0.0)
        zeros = tl.load(zeros_ptr + group, mask=column < n, other=0)
        weight = (((words >> shifts) & 0xF) - zeros[None, :].to(tl.int32)).to(x.dtype) * scales[None, :]
        total = tl.dot(x, weight, total)
    at = (part * rows + m[:, None]).to(tl.int64) * n + column[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=(m[:, None] < rows) & (column[None, :] < n))


class TritonKernel:
    name = "triton"

    def __init__(self) -> None:
        self.version = f"triton {triton.__version__}"

    def pack(self, weight: QuantizedTensor) -> Packed:
        if weight.group % BLOCK_K:
            raise Unavailable(f"takes groups of whole {BLOCK_K}")
        codes = nibbles.pack_rows(weight.codes.t())
        return codes, weight.scales.t().contiguous(), weight.zeros.t().contiguous()

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        rows, n, k = case.rows, case.shape.n, case.shape.k
        block_m = min(128, max(16, triton.next_power_of_2(rows)))
        tiles = triton.cdiv(n, BLOCK_N) * triton.cdiv(rows, block_m)
        parts = split(tiles, k)
        part_k = triton.cdiv(k // BLOCK_K, parts) * BLOCK_K
        y = torch.empty(parts, rows, n, dtype=torch.float32 if parts > 1 else x.dtype, device=x.device)
        grid = (triton.cdiv(n, BLOCK_N), triton.cdiv(rows, block_m), parts)
        _kernel[grid](
            x, *packed, y, rows, n, k, case.group_size, part_k,
            BLOCK_M=block_m, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=4, num_stages=4,
        )  # fmt: skip
        return y.sum(0).to(x.dtype) if parts > 1 else y[0]


def split(tiles: int, k: int) -> int:
    """Parts of K, a power of two: as many as keep every multiprocessor busy, none under 4 blocks."""
    parts = 1
    while tiles * parts < MULTIPROCESSORS * PROGRAMS_PER_MULTIPROCESSOR and k // BLOCK_K >= 8 * parts:
        parts *= 2
    return parts
