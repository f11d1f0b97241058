"""Machete, from vLLM's op library: wgmma kernels for Hopper, which bring the weight into their own order."""

from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import nibbles, vllm_ops
from benchmarks.kernels.peers.peer import Packed, Unavailable

BLOCK_K, BLOCK_N = 64, 128


class Machete:
    name = "machete"

    def __init__(self, ops: vllm_ops.VllmOps) -> None:
        self.version = ops.version
        self._product, self._prepack = ops.get("machete_mm"), ops.get("machete_prepack_B")
        self._weight_type = ops.uint4

    def pack(self, weight: QuantizedTensor) -> Packed:
        if weight.n % BLOCK_N or weight.k % BLOCK_K or weight.group not in (64, 128):
            raise Unavailable("takes N of whole 128, K of whole 64, and groups of 64 or 128")
        words = nibbles.pack_rows(weight.codes.t())
        by_columns = words.t().contiguous().t()
        codes = self._prepack(by_columns, weight.scales.dtype, self._weight_type, weight.scales.dtype)
        return codes, weight.scales.t().contiguous(), negated_zeros(weight)

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        codes, scales, zeros = packed
        return self._product(  # type: ignore[no-any-return]
            x, codes, self._weight_type, None, scales, zeros, case.group_size, None, None, None
        )


def negated_zeros(weight: QuantizedTensor) -> Tensor:
    """[K/G, N]: w = code * scale + this."""
    return (-weight.scales * weight.zeros.to(weight.scales.dtype)).t().contiguous()
