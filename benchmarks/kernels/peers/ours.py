"""tinyserve's own W4A16 kernels, as a layer calls them."""

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.peer import Packed, Unavailable
from tinyserve import ops


class Ours:
    name = "tinyserve"

    def __init__(self, device: str) -> None:
        self.version = str(ops.build_info()["version"])
        for op in ("w4a16_pack", "w4a16_gemv", "w4a16_gemm"):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tinyserve::{op}", device.upper()):
                raise Unavailable(f"tinyserve::{op} is not compiled for {device}")

    def pack(self, weight: QuantizedTensor) -> Packed:
        packed = ops.w4a16_pack(weight.codes, weight.scales, weight.zeros)
        return packed.qweight, packed.qparams

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        qweight, qparams = packed
        weight = ops.PackedWeight(qweight, qparams, case.shape.n, case.shape.k, case.group_size)
        return ops.w4a16_linear(x, weight)
