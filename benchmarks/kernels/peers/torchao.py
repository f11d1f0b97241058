"""torchao's 4-bit weights ("tile packed to 4d"), from its wheel: tinygemm behind a tensor of its own; bfloat16."""

import os

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Packed
from benchmarks.kernels.peers.tinygemm import Tinygemm

MULTIPLE_OF_K = 1024


class Torchao:
    name = "torchao"

    def __init__(self, folder: PeerFolder) -> None:
        self.version = f"torchao {folder.use_wheel('torchao')}"
        # Its own libraries are made for one version of torch, and this path needs none of them.
        os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
        from torchao.quantization.quantize_.workflows import Int4TilePackedTo4dTensor

        self._tensor = Int4TilePackedTo4dTensor
        self._tinygemm = Tinygemm()

    def pack(self, weight: QuantizedTensor) -> Packed:
        return self._tinygemm.pack(padded(weight))

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        size = torch.Size((case.shape.n, case.shape.k))
        codes, scale_zero_pairs = packed
        return linear(x, self._tensor(codes, scale_zero_pairs, [1, case.group_size], size))


def padded(weight: QuantizedTensor) -> QuantizedTensor:
    """With K of whole MULTIPLE_OF_K; what is added is 0."""
    more = -weight.k % MULTIPLE_OF_K
    groups = (0, more // weight.group)
    codes, scales, zeros = pad(weight.codes, (0, more)), pad(weight.scales, groups), pad(weight.zeros, groups)
    return QuantizedTensor(codes, scales, zeros, weight.config)
