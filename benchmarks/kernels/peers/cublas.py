"""torch's own product with 16-bit weights: cuBLAS, what 4 bits are compared with."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from awq.quantize import QuantizedTensor, dequantize
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.peer import Packed


class Cublas:
    name = "cublas"

    def __init__(self) -> None:
        self.version = f"torch {torch.__version__}"

    def pack(self, weight: QuantizedTensor) -> Packed:
        return (dequantize(weight).to(weight.scales.dtype),)

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        return linear(x, packed[0])
