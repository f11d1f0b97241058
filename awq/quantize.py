"""Decides how a weight matrix becomes integer codes with a scale and a zero per group, and back.

Pure functions on tensors; knows no layer, no model and no file. Dimensions: N out features, K in features, G the group
size along K. The weight a code stands for is (code - zero) * scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from awq.errors import UserError

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# A group narrower than this is treated as this wide, so that no scale is zero. The value is llm-awq's.
MIN_RANGE = 1e-5
# Elements of one pass over a CPU weight: the fp32 temporaries of 1 MiB each stay in the cache, four times faster than
# passing over a whole 4096 x 11008 matrix.
CPU_CHUNK = 1 << 18


@dataclass(frozen=True)
class QuantConfig:
    """How weights are rounded.

    Args:
        bits: width of a code, 2 to 8; only 4 can be stored in a checkpoint.
        group_size: in features that share one scale; -1 makes each row one group.
        zero_point: True spreads the codes over [min, max] of the group; False over [-max|w|, max|w|], the zero being
            2**(bits-1).

    Raises:
        UserError (a ValueError): a field is out of range.
    """

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True

    def __post_init__(self) -> None:
        if not _is_int(self.bits) or not 2 <= self.bits <= 8:
            raise UserError(f"bits must be an integer from 2 to 8, got {self.bits!r}")
        if not _is_int(self.group_size) or (self.group_size != -1 and self.group_size < 1):
            raise UserError(f"group_size must be a positive integer, or -1 for whole rows, got {self.group_size!r}")
        if not isinstance(self.zero_point, bool):
            raise UserError(f"zero_point must be true or false, got {self.zero_point!r}")

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    @property
    def symmetric_zero(self) -> int:
        """The zero of every group when zero_point is False."""
        return 2 ** (self.bits - 1)

    def group(self, k: int) -> int:
        """The in features per group of a matrix with `k` of them.

        Raises:
            UserError: the group size does not divide k.
        """
        size = k if self.group_size == -1 else self.group_size
        if k < 1 or k % size:
            raise UserError(f"group_size {self.group_size} does not divide the {k} in features")
        return size


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight matrix, as every format is decoded to and every packed layout is made from.

    Args:
        codes: uint8 [N, K], 0 to 2**bits - 1.
        scales: fp16, bf16 or fp32 [N, K/G].
        zeros: uint8 [N, K/G], the code that stands for weight 0.
        config: how it was rounded.

    Raises:
        ValueError: shapes or dtypes do not fit each other.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    config: QuantConfig

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 2:
            raise ValueError(f"codes must be uint8 [N, K], got {_describe(self.codes)}")
        n, k = self.codes.shape
        expected = (n, k // self.config.group(k))
        if self.scales.dtype not in FLOAT_DTYPES or self.scales.shape != expected:
            raise ValueError(f"scales must be fp16, bf16 or fp32 {list(expected)}, got {_describe(self.scales)}")
        if self.zeros.dtype != torch.uint8 or self.zeros.shape != expected:
            raise ValueError(f"zeros must be uint8 {list(expected)}, got {_describe(self.zeros)}")

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    @property
    def group(self) -> int:
        """In features that share one scale; K where the config says -1."""
        return self.config.group(self.k)


def quantize(
    weight: Tensor, config: QuantConfig, scale_dtype: torch.dtype | None = None, name: str = "weight"
) -> QuantizedTensor:
    """Rounds a weight to codes, group by group.

    As llm-awq's pseudo_quantize_tensor, with two changes. All is computed in fp32, and scales are rounded to the dtype
    they are stored in before codes are computed, so that the codes are the best ones for the stored scales. And the
    range of a group always holds 0: where all weights of a group have one sign, llm-awq's clamped zero cuts them off.

    Args:
        weight: fp16, bf16 or fp32 [N, K].
        config: bits, group size and symmetry.
        scale_dtype: dtype of the scales; the weight's own when None.
        name: what error messages call the weight.

    Raises:
        UserError: not such a matrix, NaN or infinite weights, K is not a multiple of the group size, or a scale that
            overflows scale_dtype.
    """
    groups = _grouped(weight, config, name)
    scale_dtype = scale_dtype or weight.dtype
    n, num_groups, _ = groups.shape
    codes = torch.empty(groups.shape, dtype=torch.uint8, device=weight.device)
    scales = torch.empty((n, num_groups), dtype=scale_dtype, device=weight.device)
    zeros = torch.empty((n, num_groups), dtype=torch.uint8, device=weight.device)
    for rows in _row_chunks(groups):
        part = groups[rows].float()
        scale, zero = _scale_and_zero(part, config, scale_dtype, name)
        scales[rows], zeros[rows] = scale.squeeze(-1), zero.squeeze(-1)
        codes[rows] = round_groups(part, scale, zero, config)
    return QuantizedTensor(codes.view(n, -1), scales, zeros, config)


def dequantize(quantized: QuantizedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [N, K] that the codes stand for: (code - zero) * scale in fp32, then rounded to dtype."""
    n, k = quantized.codes.shape
    groups = quantized.codes.view(n, k // quantized.group, quantized.group)
    weight = torch.empty(groups.shape, dtype=dtype, device=groups.device)
    for rows in _row_chunks(groups):
        scale, zero = quantized.scales[rows].float().unsqueeze(-1), quantized.zeros[rows].float().unsqueeze(-1)
        weight[rows] = groups[rows].float().sub_(zero).mul_(scale)
    return weight.view(n, k)


def fake_quantize(weight: Tensor, config: QuantConfig, name: str = "weight") -> Tensor:
    """dequantize(quantize(weight)) in the weight's own dtype, without storing the codes.

    Raises:
        UserError: as quantize.
    """
    groups = _grouped(weight, config, name)
    result = torch.empty(groups.shape, dtype=weight.dtype, device=weight.device)
    for rows in _row_chunks(groups):
        part = groups[rows].float()
        scale, zero = _scale_and_zero(part, config, weight.dtype, name)
        result[rows] = round_groups(part, scale, zero, config).sub_(zero).mul_(scale)
    return result.view(weight.shape)


def _grouped(weight: Tensor, config: QuantConfig, name: str) -> Tensor:
    """The weight as [N, K/G, G]."""
    if weight.ndim != 2 or weight.dtype not in FLOAT_DTYPES:
        raise UserError(f"{name} must be fp16, bf16 or fp32 [N, K], got {_describe(weight)}")
    n, k = weight.shape
    try:
        group = config.group(k)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return weight.detach().reshape(n, k // group, group)


def range_scale_and_zero(
    low: Tensor, high: Tensor, config: QuantConfig, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """How a range of weights is spread over the codes: fp32 scales, rounded to scale_dtype, and fp32 integer zeros.

    Args:
        low, high: fp32, of one shape, which is also the results'; 0 is always inside the range.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if config.zero_point:
        scale = (high - low).clamp(min=MIN_RANGE) / config.max_code
    else:
        scale = torch.maximum(high, -low).clamp(min=MIN_RANGE) / (config.symmetric_zero - 1)
    scale = scale.to(scale_dtype).float()
    if config.zero_point:
        return scale, (low / scale).round_().neg_().clamp_(0, config.max_code)
    return scale, torch.full_like(scale, config.symmetric_zero)


def round_groups(groups: Tensor, scale: Tensor, zero: Tensor, config: QuantConfig) -> Tensor:
    """fp32 integer codes [..., G] of fp32 groups with scales and zeros [..., 1]; overwrites nothing."""
    return (groups / scale).round_().add_(zero).clamp_(0, config.max_code)


def _scale_and_zero(groups: Tensor, config: QuantConfig, scale_dtype: torch.dtype, name: str) -> tuple[Tensor, Tensor]:
    """Both [N, K/G, 1], for fp32 groups [N, K/G, G], each spread over its own values."""
    low, high = (bound.unsqueeze(-1) for bound in torch.aminmax(groups, dim=-1))
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):  # aminmax hands on NaN
        bad = int((~torch.isfinite(groups)).sum())
        raise UserError(f"{name} has {bad} NaN or infinite values and cannot be quantized")
    scale, zero = range_scale_and_zero(low, high, config, scale_dtype)
    if not bool(torch.isfinite(scale).all()):
        raise UserError(f"{name}: values up to {float(groups.abs().max()):.4g} need scales beyond {scale_dtype}")
    return scale, zero


def _row_chunks(groups: Tensor) -> Iterator[slice]:
    """Slices of rows to work on one after the other; a device other than the CPU takes all at once."""
    n = groups.shape[0]
    row = groups[0].numel() if n else 1
    step = max(1, CPU_CHUNK // row) if groups.device.type == "cpu" else max(1, n)
    for start in range(0, n, step):
        yield slice(start, start + step)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
