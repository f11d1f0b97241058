"""How llm-awq's two layouts store a module: v2, and the older GEMV layout (v1). Their files are read in pt_file.py.

For N out features, K in features, groups of G, and W = zeros_width(K, G):
    v2  qweight       int16 [N/4, K]   see encode_v2
        scales        fp16 or bf16 [8W, N], rows past K/G are 0
        scaled_zeros  same dtype [8W, N], -zero * scale
    v1  qweight       int32 [N, K/8]   nibble i of word [n, c] is the code of in channel 8c + i
        qzeros        int32 [N, W]     packed the same way along the groups
        scales        fp16 [N, 8W], columns past K/G are 0
Knows no model and no file.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from awq.formats.checkpoint import FLOAT16, INT32, Dtypes, Layout
from awq.formats.nibbles import PER_WORD, unpack_columns
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
