"""Hands a checkpoint's weights to a model definition: checked, fused, on their device, 16-bit, packed or quantized.

It decides which linear class a weight becomes. It knows no architecture: names and shapes come from the definition,
and how a tensor is stored is the business of awq.formats.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from awq.formats import Checkpoint
from awq.quantize import QuantizedTensor, dequantize
from tinyserve import ops
from tinyserve.config import LoadIn
from tinyserve.layers.bitsandbytes_linear import BitsAndBytesLinear, SideBySide
from tinyserve.layers.embedding import Embedding, W8Embedding
from tinyserve.layers.fused_linear import GATE_ROWS, FusedLinear, GatedLinear
from tinyserve.layers.huge_pages import HugePages
from tinyserve.layers.int8_linear import W8A16Linear
from tinyserve.layers.linear import Linear, LinearLayer, W4A8Linear, W4A16Linear, W8A8Linear
from tinyserve.models import bitsandbytes_stored
from tinyserve.models.packed_cache import PackedCache
from tinyserve.models.packed_file import Weight
from tinyserve.ops import PackedWeight, PackedWeight8

Placeable = TypeVar("Placeable", Linear, W4A8Linear, W4A16Linear, W8A8Linear)
Join = Callable[[list[Tensor]], Tensor]  # rows of several modules to those of one

_log = logging.getLogger(__name__)


class WeightReader:
    """Reads one checkpoint for one model.

    Args:
        checkpoint: where the tensors are.
        dtype: of activations and of every weight that is not packed.
        device: where everything ends up.
        rounded: products with 4-bit weights and of the output layer are of int8 activations, the latter's weight too.
        load_in: how bitsandbytes quantizes linear layers of 16 bits, the output layer excepted; None: not at all.
        pages: where weights of the CPU lie, in the order in which they are read here; None: pages of its own.
        packed: packed weights of an earlier start; None: all are packed here.
        has_8_bit_output: an output layer of 16 bits is rounded to 8; activations are not, unless `rounded`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        rounded: bool = False,
        load_in: LoadIn | None = None,
        pages: HugePages | None = None,
        packed: PackedCache | None = None,
        has_8_bit_output: bool = False,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._checkpoint = checkpoint
        self._rounded = rounded
        self._load_in = load_in
        self._pages = pages or HugePages()
        self._packed = packed
        self._has_8_bit_output = has_8_bit_output
        self._fuses = ops.w4a16_fuses(device)

    def as_stored(self) -> "WeightReader":
        """The same without quantizing anything: for parts that stay in 16 bits."""
        return WeightReader(
            self._checkpoint, self.dtype, self.device, self._rounded, pages=self._pages, packed=self._packed
        )

    def progress(self, num_layers: int) -> Iterator[int]:
        """The layers' indices, with a bar on a terminal."""
        return iter(tqdm(range(num_layers), desc="loading", unit="layer", disable=None, leave=False))

    def names(self) -> list[str]:
        """Of all tensors, as if nothing were quantized."""
        return [*self._checkpoint.names(), *(f"{module}.weight" for module in self._checkpoint.modules())]

    def has_any(self, prefix: str) -> bool:
        """Whether the checkpoint holds plain tensors whose names begin so."""
        return any(name.startswith(prefix) for name in self._checkpoint.names())

    def num_rows(self, name: str) -> int:
        """Length of the first dimension of a plain tensor.

        Raises:
            ValueError: it is missing.
        """
        self._require(name)
        return self._checkpoint.shape(name)[0]

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A plain tensor.

        Raises:
            ValueError: it is missing, or its shape is not `shape`.
        """
        self._require(name)
        module, _, last = name.rpartition(".")
        if last == "weight" and len(shape) == 2 and bitsandbytes_stored.holds(self._checkpoint, module):
            layer = bitsandbytes_stored.read(self._checkpoint, module, (shape[0], shape[1]), self.device)
            return layer.dequantized().to(self.dtype)
        tensor = self._checkpoint.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {list(shape)} by config.json, got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point, got {tensor.dtype}")
        # A vector that stayed in its file's mapping would keep all that was read from there in memory.
        return tensor.to(self.device, self.dtype, copy=tensor.dim() == 1).contiguous()

    def linear(self, rows: Mapping[str, int], in_features: int, is_gated: bool = False) -> LinearLayer:
        """One layer from the modules in `rows` (name to number of output features), one below the other.

        Modules that share their input become one matrix, so that a step reads the input once and calls one op.

        Args:
            rows: in the order of the result's columns.
            in_features: C.
            is_gated: the modules are the gate and the up projection of a GatedMLP: they may come as a layer that also
                multiplies its two parts.

        Raises:
            ValueError: a tensor is missing or has another shape than config.json says.
        """
        return self._linear(rows, in_features, self._load_in, is_gated)

    def embedding(
        self, shape: tuple[int, int], is_output: bool, name: str = "model.embed_tokens"
    ) -> Embedding | W8Embedding:
        """The embedding [V, C]; `is_output`: the output layer is the same matrix, and is held as that would be."""
        if is_output and self._rounded:
            stored = self._stored(name, PackedWeight8, *shape)
            output = W8A8Linear(stored) if stored else self._in_8_bits(name, self.tensor(f"{name}.weight", shape))
            return W8Embedding(output, self.dtype)
        return Embedding(self.tensor(f"{name}.weight", shape))

    def lm_head(
        self, shape: tuple[int, int], name: str = "lm_head", tied: Embedding | W8Embedding | None = None
    ) -> LinearLayer:
        """The output layer [V, C]: the module `name`, or the matrix of the embedding `tied`, which stays for tokens.

        Raises:
            ValueError: as `linear`, or C is no multiple of 32 for a weight of 8 bits.
        """
        layer = self._untied_lm_head(shape, name) if tied is None else tied.as_output()
        if not self._has_8_bit_output or isinstance(layer, W8A8Linear):
            return layer
        if not isinstance(layer, Linear):
            _log.warning("the output layer is not rounded to 8 bits: the checkpoint has it quantized already")
            return layer
        return self._placed(W8A16Linear.from_weight(layer.weight, layer.bias))

    def _untied_lm_head(self, shape: tuple[int, int], name: str) -> LinearLayer:
        rows = {name: shape[0]}
        if self._rounded and (stored := self._stored(name, PackedWeight8, *shape)):
            return W8A8Linear(stored, self._bias(rows))
        layer = self._linear(rows, shape[1], load_in=None)
        if self._rounded and isinstance(layer, Linear):
            return self._in_8_bits(name, layer.weight, layer.bias)
        return layer

    def _in_8_bits(self, name: str, weight: Tensor, bias: Tensor | None = None) -> W8A8Linear:
        layer = self._placed(W8A8Linear.from_weight(weight, bias))
        if self._packed is not None:
            self._packed.add(name, layer.weight)
        return layer

    def _stored(self, name: str, kind: type[Weight], n: int, k: int) -> Weight | None:
        """What an earlier start has packed."""
        return None if self._packed is None else self._packed.get(name, kind, n, k, self._pages.empty)

    def _placed(self, layer: Placeable) -> Placeable:
        return layer.placed(self._pages.place) if self.device.type == "cpu" else layer

    def _linear(
        self, rows: Mapping[str, int], in_features: int, load_in: LoadIn | None, is_gated: bool = False
    ) -> LinearLayer:
        if load_in or any(bitsandbytes_stored.holds(self._checkpoint, name) for name in rows):
            layers = [self._bitsandbytes(name, n, in_features, load_in) for name, n in rows.items()]
            return layers[0] if len(layers) == 1 else SideBySide(layers)
        kind = self._kind_of_4_bits(rows, is_gated)
        together = " ".join(rows)
        if stored := self._stored(together, PackedWeight, sum(rows.values()), in_features):
            return kind(stored, self._bias(rows, kind.join))
        quantized = {
            name: self._quantized(name, n, in_features) for name, n in rows.items() if self._is_quantized(name)
        }
        if len(quantized) == len(rows) and len({parts.config for parts in quantized.values()}) == 1:
            whole = _joined(list(quantized.values()), kind.join)
            layer = self._placed(kind.from_quantized(whole, self._bias(rows, kind.join), self.dtype))
            if self._packed is not None:
                self._packed.add(together, layer.weight)
            return layer
        if quantized:
            _log.warning("%s are quantized differently: this layer runs in %s", " and ".join(rows), self.dtype)
        weights = [
            dequantize(quantized[name]).to(self.device, self.dtype)
            if name in quantized
            else self.tensor(f"{name}.weight", (n, in_features))
            for name, n in rows.items()
        ]
        return self._placed(Linear(weights[0] if len(weights) == 1 else torch.cat(weights), self._bias(rows)))

    def _kind_of_4_bits(self, rows: Mapping[str, int], is_gated: bool) -> type[W4A16Linear]:
        """Decides how a block is computed: which of its norms, SiLU and additions run within its linear layers."""
        if self._rounded or not self._fuses:  # the norms add, and SiLU is alone
            return W4A8Linear if self._rounded else W4A16Linear
        return GatedLinear if is_gated and all(n % GATE_ROWS == 0 for n in rows.values()) else FusedLinear

    def _require(self, name: str) -> None:
        if not self._checkpoint.has(name):
            raise ValueError(f"the checkpoint has no tensor {name}")

    def _is_quantized(self, module: str) -> bool:
        return self._checkpoint.is_quantized(module)

    def _quantized(self, module: str, out_features: int, in_features: int) -> QuantizedTensor:
        quantized = self._checkpoint.quantized(module)
        if tuple(quantized.codes.shape) != (out_features, in_features):
            expected = [out_features, in_features]
            raise ValueError(f"{module} must be {expected} by config.json, got {list(quantized.codes.shape)}")
        return QuantizedTensor(
            quantized.codes.to(self.device),
            quantized.scales.to(self.device),
            quantized.zeros.to(self.device),
            quantized.config,
        )

    def _bitsandbytes(self, module: str, n: int, k: int, load_in: LoadIn | None) -> LinearLayer:
        """The module as bitsandbytes has stored it, else quantized now; in 16 bits where the checkpoint left it so."""
        bias = self._bias({module: n})
        if bitsandbytes_stored.holds(self._checkpoint, module):
            return bitsandbytes_stored.read(self._checkpoint, module, (n, k), self.device, bias)
        weight = self.tensor(f"{module}.weight", (n, k))
        return BitsAndBytesLinear.quantize(weight, load_in, self.device, bias) if load_in else Linear(weight, bias)

    def _bias(self, rows: Mapping[str, int], join: Join = torch.cat) -> Tensor | None:
        if not any(self._checkpoint.has(f"{name}.bias") for name in rows):
            return None
        parts = [
            self.tensor(f"{name}.bias", (n,))
            if self._checkpoint.has(f"{name}.bias")
            else torch.zeros(n, dtype=self.dtype, device=self.device)
            for name, n in rows.items()
        ]
        return join(parts)


def _joined(parts: list[QuantizedTensor], join: Join) -> QuantizedTensor:
    """One quantized tensor with the rows of all `parts`."""
    if len(parts) == 1:
        return parts[0]
    return QuantizedTensor(
        join([part.codes for part in parts]),
        join([part.scales for part in parts]),
        join([part.zeros for part in parts]),
        parts[0].config,
    )
