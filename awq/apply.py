"""Puts search results into weights: scales folded into what computes the input, clips as bounds, then codes.

Works tensor by tensor and by name, so that a model in memory and a checkpoint on disk go through the same lines. It
does not know how scales and clips were found, nor how a checkpoint is stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from awq.errors import UserError
from awq.groups import Fold
from awq.lazy import Lazy
from awq.model import ModelFolder
from awq.quantize import QuantConfig, QuantizedTensor, dequantize, quantize
from awq.results import SearchResults


class Adjustment:
    """What search results do to each tensor of a model.

    Folding divides what computes a group's input by t and multiplies the group's weights by t per input channel, which
    leaves the function of the block unchanged: (x / t) @ (W * t)^T = x @ W^T. Clips bound the scaled weights.
    """

    def __init__(self, results: SearchResults, folds: Mapping[str, Fold]) -> None:
        """Args: folds, by name of what takes the inverse of a scale; where there is none, its last K rows do."""
        self._divisors: dict[str, list[tuple[Tensor, Fold]]] = {}  # tensor name -> t [K] and where it goes
        self._column_factors: dict[str, list[Tensor]] = {}  # tensor name -> [K]
        self._bounds = {f"{clip.layer}.weight": clip.bound for clip in results.clips}  # [N, K/G, 2]
        for item in results.scales:
            for layer in item.layers:
                self._column_factors.setdefault(f"{layer}.weight", []).append(item.scales)
            fold = folds.get(item.prev, Fold())
            self._divisors.setdefault(f"{item.prev}.weight", []).append((item.scales, fold))
            self._divisors.setdefault(f"{item.prev}.bias", []).append((item.scales, replace(fold, offset=0.0)))

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The adjusted copy of one tensor, in fp32: everything is rounded once, when it is stored."""
        tensor = tensor.to(torch.float32, copy=True)
        for factor in self._column_factors.get(name, []):
            tensor.mul_(factor.to(tensor))
        for scales, fold in self._divisors.get(name, []):
            divisor = row_divisor(scales, fold, len(tensor)).to(tensor).view(-1, *[1] * (tensor.dim() - 1))
            tensor.add_(fold.offset).div_(divisor).sub_(fold.offset)
        if name in self._bounds:
            clip_weight(tensor, self._bounds[name])
        return tensor


def row_divisor(scales: Tensor, fold: Fold, rows: int) -> Tensor:
    """What each output row of what computes the input is divided by, [rows]; rows that compute something else by 1.

    Args:
        scales: t [K]; input channels that one row computes have the same.
    """
    divisor = torch.ones(rows)
    divisor[torch.arange(rows - len(scales), rows) if fold.rows is None else fold.rows] = scales.float().cpu()
    return divisor


def clip_weight(weight: Tensor, bound: Tensor) -> None:
    """Clamps each group of `weight` [N, K] to its own lowest and highest value [N, K/G, 2] in place."""
    low, high = bound.to(weight).split(1, -1)
    weight.view(weight.shape[0], bound.shape[1], -1).clamp_(low, high)


class QuantizedModel:
    """The quantized model, each tensor made when it is asked for: only that one is in memory.

    Attributes:
        quantized: module name -> codes, scales and zeros of each Linear of the blocks.
        state: name -> every other tensor, in its 16-bit type.
    """

    def __init__(
        self,
        model: ModelFolder,
        config: QuantConfig,
        results: SearchResults | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            results: scales and clips to apply first; None: round to nearest.
            dtype: of scales and 16-bit tensors; None: the checkpoint's.

        Raises:
            UserError: a Linear whose input is no multiple of the group size.
        """
        self._model = model
        self._config = config
        self._adjust = Adjustment(results or SearchResults(), model.folds())
        self._dtype = dtype
        model.check_group(config)
        linears = model.linears()
        weights = {f"{module}.weight" for module in linears}
        self.quantized: Mapping[str, QuantizedTensor] = Lazy(linears, self._quantize)
        self.state: Mapping[str, Tensor] = Lazy(
            [name for name in model.checkpoint.names() if name not in weights], self._store
        )

    def _quantize(self, module: str) -> QuantizedTensor:
        name = f"{module}.weight"
        weight = self._model.checkpoint.tensor(name)
        try:
            return quantize(self._adjust(name, weight), self._config, self._dtype or storage_dtype(weight.dtype), name)
        except ValueError as error:  # NaN or infinite weights
            raise UserError(str(error)) from error

    def _store(self, name: str) -> Tensor:
        tensor = self._model.checkpoint.tensor(name)
        if not tensor.is_floating_point():
            return tensor
        return self._adjust(name, tensor).to(self._dtype or storage_dtype(tensor.dtype))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, Linears as the fp32 weights that their codes stand for."""
        for name in self.state:
            yield name, self.state[name]
        for module in self.quantized:
            yield f"{module}.weight", dequantize(self.quantized[module])


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type in which scales and unquantized tensors of a checkpoint of `dtype` are written."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
