"""llm-awq's `.pt` files: one pickled state dict of the whole model, in the v2 layout or the older GEMV layout (v1).

For N out features, K in features, groups of G, and W = zeros_width(K, G):
    v2  qweight       int16 [N/4, K]   see encode_v2
        scales        fp16 or bf16 [8W, N], rows past K/G are 0
        scaled_zeros  same dtype [8W, N], -zero * scale
    v1  qweight       int32 [N, K/8]   nibble i of word [n, c] is the code of in channel 8c + i
        qzeros        int32 [N, W]     packed the same way along the groups
        scales        fp16 [N, 8W], columns past K/G are 0
The group size is in no field: it follows from how many groups have scales. Files are read as data only, never unpickled
as code. Knows no model.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.formats.checkpoint import FLOAT16, INT32, CheckpointError, Dtypes, Layout, TensorInfo
from awq.formats.contents import check_config, plain_tensors, quantized_tensors, storage_dtype
from awq.formats.nibbles import PER_WORD, unpack_columns
from awq.formats.output import new_file, own_memory
from awq.quantize import QuantConfig, QuantizedTensor

INTERLEAVE = 4  # rows of the weight in one row of a v2 qweight
K_STRIDE = 64  # in features of one row that lie together in v2
# How far -scaled_zero / scale may be from an integer. Rounding the product to bf16 moves it by 15 * 2**-9 = 0.03.
ZERO_TOLERANCE = 0.25


def zeros_width(k: int, group: int) -> int:
    """Words of eight 4-bit zeros per out channel, padded as llm-awq's calculate_zeros_width."""
    multiple = 1 if group >= 128 else 2 if group >= 64 else 4
    words = -(-(k // group) // PER_WORD)
    return -(-words // multiple) * multiple


def encode_v2(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The stored tensors of a module by suffix.

    Code (n, k) is nibble (k % 32) // 8 of qweight[n // 4, 64 (k // 64) + 16 (n % 4) + 8 (k % 64 // 32) + k % 8]:
    four rows are read together, and one logic operation unpacks two neighbours.
    """
    n, k = weight.n, weight.k
    # [N/4, 4, K/64, 2, 4, 8]: rows, row in four, column block, half of it, nibble, column in eight
    codes = weight.codes.view(n // INTERLEAVE, INTERLEAVE, k // K_STRIDE, 2, 4, 8)
    nibbles = codes.permute(4, 0, 2, 1, 3, 5).contiguous()
    data = torch.stack((nibbles[0] | (nibbles[1] << 4), nibbles[2] | (nibbles[3] << 4)), dim=-1)
    rows = PER_WORD * zeros_width(k, weight.group)
    scales = torch.zeros((rows, n), dtype=weight.scales.dtype, device=weight.scales.device)
    scaled_zeros = torch.zeros_like(scales)
    groups = k // weight.group
    scales[:groups] = weight.scales.t()
    scaled_zeros[:groups] = -(weight.scales.float() * weight.zeros.float()).t()
    qweight = data.view(torch.int16).view(n // INTERLEAVE, k)
    return {"qweight": qweight, "scales": scales, "scaled_zeros": scaled_zeros}


def _decode_v2(tensors: Mapping[str, Tensor], config: QuantConfig, zeros_name: str) -> QuantizedTensor:
    qweight = tensors["qweight"]
    n, k = qweight.shape[0] * INTERLEAVE, qweight.shape[1]
    data = qweight.contiguous().view(torch.uint8).view(n // INTERLEAVE, k // K_STRIDE, INTERLEAVE, 2, 8, 2)
    codes = torch.empty((n // INTERLEAVE, INTERLEAVE, k // K_STRIDE, 2, 4, 8), dtype=torch.uint8, device=data.device)
    for byte in range(2):
        part = data[..., byte].transpose(1, 2)  # [N/4, 4, K/64, 2, 8]
        codes[..., 2 * byte, :] = part & 15
        codes[..., 2 * byte + 1, :] = part >> 4
    groups = k // config.group(k)
    scales = _unpadded(tensors["scales"], groups)
    scaled_zeros = _unpadded(tensors[zeros_name], groups)
    # A group whose scale is 0 has no recoverable zero and needs none.
    ratio = torch.where(scales == 0, 0.0, -scaled_zeros.float() / scales.float())
    zeros = ratio.round()
    if not bool(((ratio - zeros).abs() < ZERO_TOLERANCE).all() and (zeros >= 0).all() and (zeros < 16).all()):
        raise ValueError(f"{zeros_name} must be -zero * scale with zeros from 0 to 15")
    return QuantizedTensor(codes.view(n, k), scales.t().contiguous(), zeros.to(torch.uint8).t().contiguous(), config)


def _unpadded(table: Tensor, groups: int) -> Tensor:
    if bool((table[groups:] != 0).any()):
        raise ValueError(f"rows past the {groups} groups must be 0; the file has another group size")
    return table[:groups]


def _decode_v1(tensors: Mapping[str, Tensor], config: QuantConfig) -> QuantizedTensor:
    codes = unpack_columns(tensors["qweight"])
    groups = codes.shape[1] // config.group(codes.shape[1])
    scales = _unpadded(tensors["scales"].t(), groups).t().contiguous()
    zeros = unpack_columns(tensors["qzeros"])[:, :groups].contiguous()
    return QuantizedTensor(codes, scales, zeros, config)


def _expected_v2(n: int, k: int, group: int, zeros_name: str) -> dict[str, tuple[Dtypes, tuple[int, ...]]]:
    rows = PER_WORD * zeros_width(k, group)
    return {
        "qweight": ((torch.int16,), (n // INTERLEAVE, -(-k // K_STRIDE) * K_STRIDE)),
        "scales": (FLOAT16, (rows, n)),
        zeros_name: (FLOAT16, (rows, n)),
    }


def _expected_v1(n: int, k: int, group: int) -> dict[str, tuple[Dtypes, tuple[int, ...]]]:
    width = zeros_width(k, group)
    return {
        "qweight": (INT32, (n, k // PER_WORD)),
        "qzeros": (INT32, (n, width)),
        "scales": (FLOAT16, (n, PER_WORD * width)),
    }


def layout_v2(name: str, zeros_name: str) -> Layout:
    """The v2 layout; AutoAWQ's gemv_fast calls scaled_zeros qzeros."""
    return Layout(
        name=name,
        suffixes=("qweight", zeros_name, "scales"),
        size=lambda shape: (shape[0] * INTERLEAVE, shape[1]),
        expected=partial(_expected_v2, zeros_name=zeros_name),
        decode=partial(_decode_v2, zeros_name=zeros_name),
    )


def layout_v1(name: str) -> Layout:
    return Layout(
        name=name,
        suffixes=("qweight", "qzeros", "scales"),
        size=lambda shape: (shape[0], shape[1] * PER_WORD),
        expected=_expected_v1,
        decode=_decode_v1,
    )


V2 = layout_v2("llm-awq v2", "scaled_zeros")
V1 = layout_v1("llm-awq v1")


class PtFile:
    """The tensors of a `.pt` state dict, mapped from the file where its format allows.

    Raises:
        CheckpointError: damaged, not a state dict, or holding more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = _load(path)

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        return TensorInfo(tensor.dtype, tuple(tensor.shape))

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def file_of(self, name: str) -> str:
        return str(self._path)


def read_llm_awq(path: Path) -> tuple[PtFile, Layout, QuantConfig]:
    """Opens a `.pt` file and finds out its layout and group size.

    Raises:
        CheckpointError: as PtFile, or nothing in it is quantized.
    """
    source = PtFile(path)
    codes = [name for name in source.names() if name.endswith(".qweight")]
    if not codes:
        raise CheckpointError(f"{path}: no tensor ends in .qweight, so nothing in it is quantized")
    layout = V2 if source.info(codes[0]).dtype == torch.int16 else V1
    in_features = {name.removesuffix(".qweight"): layout.size(_matrix_shape(source, name))[1] for name in codes}
    module = max(in_features, key=lambda name: in_features[name])
    k, name = in_features[module], f"{module}.scales"
    if name not in source.names():
        raise CheckpointError(f"{path}: {module}.qweight is there, but {name} is missing")
    _matrix_shape(source, name)
    scales = source.tensor(name) if layout is V2 else source.tensor(name).t()
    used = scales.ne(0).any(dim=1).nonzero()
    groups = int(used.max()) + 1 if used.numel() else 0
    if groups == 0 or k % groups:
        raise CheckpointError(f"{path}: {name} has {groups} groups, which do not divide {k} in features")
    return source, layout, QuantConfig(4, -1 if groups == 1 else k // groups)


def _matrix_shape(source: PtFile, name: str) -> tuple[int, int]:
    shape = source.info(name).shape
    if len(shape) != 2:
        raise CheckpointError(f"{source}: {name} must be a matrix, got shape {list(shape)}")
    return shape[0], shape[1]


def write_llm_awq_v2(
    output: Path,
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    config: QuantConfig,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a v2 `.pt` that llm-awq's and TinyChat's --load_quant read.

    The layout has no place for symmetric zeros to be absent: they are stored as 8.

    Args:
        output: the file to make; an existing one is refused.
        state: every tensor that is not quantized, biases of quantized modules included; cast to the scales' dtype.
            A tied lm_head stays a second name of the embedding and takes no space.
        quantized: module name -> its weight; N must be a multiple of 4 and K of 64.
        config: how all of them were rounded.
        overwrite: replace an existing file, once the new one is complete.

    Raises:
        UserError: the output exists, or a layer cannot be stored: names it, its shape and what the layout needs.
    """
    check_config(config)
    with new_file(output, overwrite) as path:
        dtype = storage_dtype(quantized)
        tensors: dict[str, Tensor] = {}
        for name, tensor in plain_tensors(state, quantized, dtype):
            own = own_memory(tensor)
            twin = _equal_matrix(own, tensors.values())
            tensors[name] = own if twin is None else twin
        for module, weight in quantized_tensors(quantized, config, dtype, multiple_n=INTERLEAVE, multiple_k=K_STRIDE):
            for suffix, tensor in encode_v2(weight).items():
                tensors[f"{module}.{suffix}"] = tensor.cpu()
        torch.save(tensors, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        # Only zip archives, which torch writes since 1.6, can be mapped. Damaged bytes raise nearly anything.
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: not a complete .pt file of tensors only: {reason[0]}") from error
    if isinstance(content, dict) and {"scale", "clip"} <= content.keys():
        raise CheckpointError(f"{path}: holds search results, not weights; awq.entry --load_awq applies them")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: must hold a state dict, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} must be a tensor, got {type(tensor).__name__}")
    return dict(content)


def _equal_matrix(tensor: Tensor, others: Iterable[Tensor]) -> Tensor | None:
    """The one among others that has the same values: a tied weight, which the file then stores once."""
    matrices = (other for other in others if other.shape == tensor.shape and tensor.ndim == 2)
    return next((other for other in matrices if torch.equal(other, tensor)), None)
