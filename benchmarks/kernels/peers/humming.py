"""Humming, from its wheel: kernels compiled for each shape at first use, chosen by its own heuristics."""

import json
import os
from typing import Any

import torch
from torch import Tensor

from awq.quantize import QuantizedTensor
from benchmarks.kernels.limits import Case
from benchmarks.kernels.peers import nibbles
from benchmarks.kernels.peers.folder import PeerFolder
from benchmarks.kernels.peers.peer import Packed

LOCKS = 2048  # of its partition, as many as its own layer has
COMPUTE = json.dumps({"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": "dense"})


class Humming:
    name = "humming"

    def __init__(self, folder: PeerFolder) -> None:
        self.version = f"humming-kernels {folder.use_wheel('humming_kernels')}"
        self._choose_compiler()
        from humming import forward, schema, transform

        self._forward, self._schema, self._transform = forward, schema, transform
        self._configs: dict[tuple[Any, ...], Any] = {}  # what a shape's packing decides about its product
        self._locks = torch.zeros(LOCKS, dtype=torch.int32, device="cuda")

    @staticmethod
    def _choose_compiler() -> None:
        """NVRTC, which it prefers, or nvcc where there is none."""
        from humming.utils.nvrtc import get_nvrtc_library_path

        try:
            get_nvrtc_library_path()
        except RuntimeError:
            os.environ.setdefault("HUMMING_COMPILER", "nvcc")

    def pack(self, weight: QuantizedTensor) -> Packed:
        schema = self._schema.HummingWeightSchema(
            b_dtype="uint4", weight_scale_group_size=weight.group, has_zero_point=True
        )
        config, tensors = self._transform.prepare_and_transform_humming_tensors(
            tensors=checkpoint(weight),
            shape_n=weight.n,
            shape_k=weight.k,
            weight_schema=schema,
            pad_n_to_multiple=256,
            pad_k_to_multiple=128,
            torch_dtype=weight.scales.dtype,
            device=weight.codes.device,
        )
        self._configs[weight.n, weight.k, weight.group, weight.scales.dtype] = config
        return tensors["weight"], tensors["weight_scale"], tensors["zero_point"]

    def multiply(self, x: Tensor, packed: Packed, case: Case) -> Tensor:
        config = self._configs[case.shape.n, case.shape.k, case.group_size, case.torch_dtype]
        codes, scales, zeros = packed
        return self._forward.humming_forward(  # type: ignore[no-any-return]
            config, x, codes, scales, zeros, locks=self._locks, compute_config=COMPUTE
        )


def checkpoint(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The tensors it reads: codes int32 [N, K/8], scales [N, K/G], zeros int32 [N/8, K/G]."""
    codes = nibbles.pack_last(weight.codes.view(weight.n, -1, nibbles.FACTOR))
    return {"weight": codes, "weight_scale": weight.scales, "zero_point": nibbles.pack_rows(weight.zeros)}
