"""Linear layers: one interface, whatever the weight's format and the precision of the products.

A model definition calls them without knowing which one it holds; models/weights.py decides that from the checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from awq.quantize import QuantizedTensor
from tinyserve import ops
from tinyserve.layers.norm import RMSNorm
from tinyserve.ops import PackedWeight, PackedWeight8

Packed = TypeVar("Packed", PackedWeight, PackedWeight8)


class FusedProduct(Protocol):
    @property
    def silu_mul(self) -> bool:
        """Whether the rows are those of a gate and an up projection: the result is silu(gate) * up."""
        ...

    def __call__(self, x: Tensor, norm: RMSNorm | None = None, residual: Tensor | None = None) -> Tensor:
        """The product of norm(x) [T, K], of x itself without a norm, plus residual -> both [T, out_features]."""
        ...


class LinearLayer(Protocol):
    """Computes x @ W^T + bias for x [T, K]."""

    @property
    def out_features(self) -> int: ...

    @property
    def num_weights(self) -> int:
        """N * K: multiplications and additions for one token."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        ...

    @property
    def own_kernel(self) -> bool:
        """Whether the product is an op of tinyserve.ops, not another library's."""
        ...

    @property
    def fused(self) -> FusedProduct | None:
        """The product together with what stands around it in a block, where the layer's kernel does that too."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Linear:
    """A weight kept in the activations' own dtype."""

    weight: Tensor  # [N, K]
    bias: Tensor | None = None  # [N]

    own_kernel: ClassVar[bool] = True
    fused: ClassVar[None] = None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def num_weights(self) -> int:
        return self.weight.numel()

    @property
    def num_bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def placed(self, place: Callable[[Tensor], Tensor]) -> "Linear":
        """The same layer, its weight where `place` has copied it."""
        return replace(self, weight=place(self.weight))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class PackedLinear(Generic[Packed]):
    """A weight in a layout of the backend's own."""

    weight: Packed
    bias: Tensor | None = None  # [N]

    @property
    def own_kernel(self) -> bool:
        return True

    @property
    def fused(self) -> FusedProduct | None:
        return None

    @property
    def out_features(self) -> int:
        return self.weight.n

    @property
    def num_weights(self) -> int:
        return self.weight.n * self.weight.k

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        """The same layer, its weight where `place` has copied it."""
        parts: dict[str, Any] = {name: place(part) for name, part in self._tensors().items()}
        return replace(self, weight=replace(self.weight, **parts))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: part for name, part in vars(self.weight).items() if isinstance(part, Tensor)}


@dataclass(frozen=True, eq=False)
class W4A16Linear(PackedLinear[PackedWeight]):
    """A 4-bit weight; activations stay as they come."""

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        """The rows of modules that share their input, in the layer's order."""
        return torch.cat(parts)

    @classmethod
    def from_quantized(
        cls, quantized: QuantizedTensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """dtype: of the activations, as in ops.w4a16_pack."""
        return cls(ops.w4a16_pack(quantized.codes, quantized.scales, quantized.zeros, dtype=dtype), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        return ops.w4a16_linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class W4A8Linear(W4A16Linear):
    """The same packed weight; activations are rounded to int8 in groups: several times faster on a CPU."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        return ops.w4a8_linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class W8A8Linear(PackedLinear[PackedWeight8]):
    """A weight rounded to 8 bits in groups, by activations rounded alike: half the bytes of 16 bits."""

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """weight [N, K], K a multiple of 32."""
        return cls(ops.w8_pack(weight), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        return ops.w8a8_linear(x, self.weight, self.bias)
