"""Linear layers whose weights and products are bitsandbytes': LLM.int8 and 4-bit with double quantization.

The settings are those that transformers and LLaVA load with. The library is imported when the first such layer is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinyserve.config import LoadIn
from tinyserve.layers.linear import LinearLayer

OUTLIER_THRESHOLD = 6.0  # |x| of input channels that LLM.int8 computes in 16 bits
QUANT_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
STORED_4BIT = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
STORED_8BIT = ("weight", "SCB")  # int8 [N, K] and the largest |w| of each row [N]


@dataclass(frozen=True, eq=False)
class BitsAndBytesLinear:
    """One of bitsandbytes' layers, without its bias; products are in fp16 for 8 bits, in the input's type for 4."""

    module: Any  # Linear8bitLt or Linear4bit
    out_features: int
    num_weights: int
    bias: Tensor | None = None  # [N]

    own_kernel: ClassVar[bool] = False
    fused: ClassVar[None] = None

    @classmethod
    def quantize(
        cls, weight: Tensor, load_in: LoadIn, device: torch.device, bias: Tensor | None = None
    ) -> "BitsAndBytesLinear":
        """Rounds weight [N, K] of 16 or 32 bits."""
        bnb = _library()
        if load_in == "8bit":
            parameter = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            parameter = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
        return cls._around(parameter.to(device), load_in, weight.shape[0], weight.shape[1], bias)

    @classmethod
    def stored_8bit(
        cls, tensors: Mapping[str, Tensor], device: torch.device, bias: Tensor | None = None
    ) -> "BitsAndBytesLinear":
        """From the tensors of STORED_8BIT."""
        weight, scales = (tensors[name].to(device) for name in STORED_8BIT)
        parameter = _library().nn.Int8Params(
            weight, requires_grad=False, has_fp16_weights=False, CB=weight, SCB=scales.float()
        )
        return cls._around(parameter, "8bit", weight.shape[0], weight.shape[1], bias)

    @classmethod
    def stored_4bit(
        cls, tensors: Mapping[str, Tensor], device: torch.device, bias: Tensor | None = None
    ) -> "BitsAndBytesLinear":
        """From the tensors of STORED_4BIT, the nested ones only where there are any, and one of QUANT_STATES."""
        statistics = {name: tensor for name, tensor in tensors.items() if name != "weight"}
        parameter = _library().nn.Params4bit.from_prequantized(tensors["weight"], statistics, device=device)
        n, k = parameter.quant_state.shape
        return cls._around(parameter, "4bit", n, k, bias)

    @classmethod
    def _around(cls, parameter: Any, load_in: LoadIn, n: int, k: int, bias: Tensor | None) -> "BitsAndBytesLinear":
        nn = _library().nn
        if load_in == "8bit":
            module = nn.Linear8bitLt(
                k, n, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
            )
        else:
            module = nn.Linear4bit(k, n, bias=False, device="meta")
            module.quant_state = parameter.quant_state
            if k % parameter.quant_state.blocksize:  # its CPU layout needs whole blocks in every row
                module.support_avx512bf16_for_cpu = False
        module.weight = parameter
        return cls(module.eval(), n, n * k, bias)

    @property
    def num_bytes(self) -> int:
        """Of the codes; their scales are a fraction."""
        return self.module.weight.numel() * self.module.weight.element_size()

    def dequantized(self) -> Tensor:
        """What the codes stand for, [N, K]; only before the first product, which may lay the codes out anew."""
        weight, functional = self.module.weight, _library().functional
        if self._is_8bit:
            return functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        return functional.dequantize_4bit(weight.data, weight.quant_state)

    @property
    def _is_8bit(self) -> bool:
        return self.module.weight.dtype == torch.int8

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        out = self.module(x.half() if self._is_8bit else x).to(
            x.dtype
        )  # bitsandbytes would cast too, and log it each time
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Layers that share their input, each with its own statistics; outputs one beside the other."""

    layers: Sequence[LinearLayer]

    own_kernel: ClassVar[bool] = False
    fused: ClassVar[None] = None

    @property
    def out_features(self) -> int:
        return sum(layer.out_features for layer in self.layers)

    @property
    def num_weights(self) -> int:
        return sum(layer.num_weights for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        return sum(layer.num_bytes for layer in self.layers)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N], N of all layers together."""
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            "8- and 4-bit weights of bitsandbytes need the library: pip install 'tinyserve[bitsandbytes]'"
        ) from error
    return bitsandbytes
