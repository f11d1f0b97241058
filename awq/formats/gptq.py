"""The Hugging Face folder with `quant_method` gptq, as AutoGPTQ and GPTQModel write it; read only, 4 bits.

Per quantized module, for N out features, K in features and groups of G:
    qweight  int32 [K/8, N]    nibble i of word [r, n] is the code of in channel 8r + i
    qzeros   int32 [K/G, N/8]  nibble i of word [g, c] is the zero of out channel 8c + i, minus 1 unless the
                               checkpoint_format is gptq_v2
    scales   fp16 [K/G, N]
    g_idx    int32 [K]         the group of each in channel; k // G, unless columns were sorted by activation
Knows no model.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from awq.formats.checkpoint import FLOATS, INT32, CheckpointError, Dtypes, Layout
from awq.formats.nibbles import PER_WORD, unpack_columns, unpack_rows
from awq.quantize import QuantConfig, QuantizedTensor

# 1 in each nibble. Added to whole words, carries included: that undoes how the format subtracts it.
ONES = 0x11111111


def _decode(tensors: Mapping[str, Tensor], config: QuantConfig, zero_offset: int) -> QuantizedTensor:
    codes = unpack_rows(tensors["qweight"]).t().contiguous()
    if "g_idx" in tensors:
        k = codes.shape[1]
        in_order = torch.arange(k, dtype=torch.int32) // config.group(k)
        if not torch.equal(tensors["g_idx"], in_order):
            raise ValueError("g_idx sorts the in features by activation (desc_act), which is not supported")
    zeros = unpack_columns(tensors["qzeros"] + zero_offset)
    return QuantizedTensor(codes, tensors["scales"].t().contiguous(), zeros.t().contiguous(), config)


def _expected(n: int, k: int, group: int) -> dict[str, tuple[Dtypes, tuple[int, ...]]]:
    return {
        "qweight": (INT32, (k // PER_WORD, n)),
        "qzeros": (INT32, (k // group, n // PER_WORD)),
        "scales": (FLOATS, (k // group, n)),
        "g_idx": (INT32, (k,)),
    }


def _layout(name: str, zero_offset: int) -> Layout:
    decode: Callable[[Mapping[str, Tensor], QuantConfig], QuantizedTensor] = partial(_decode, zero_offset=zero_offset)
    return Layout(
        name=name,
        suffixes=("qweight", "qzeros", "scales"),
        size=lambda shape: (shape[1], shape[0] * PER_WORD),
        expected=_expected,
        decode=decode,
        optional=("g_idx",),
    )


CHECKPOINT_FORMATS = {"gptq": _layout("GPTQ", ONES), "gptq_v2": _layout("GPTQ v2", 0)}


def read_quantization_config(config: Mapping[str, Any], where: str) -> tuple[Layout, QuantConfig, tuple[str, ...]]:
    """The layout and the rounding that a `quantization_config` with quant_method gptq declares.

    Args:
        config: the object from config.json.
        where: the file, for messages.

    Raises:
        CheckpointError: names the field, what came and what is supported.
    """
    name = config.get("checkpoint_format") or config.get("format") or "gptq"
    if name not in CHECKPOINT_FORMATS:
        options = ", ".join(CHECKPOINT_FORMATS)
        raise CheckpointError(f"{where}: GPTQ checkpoint_format {name!r} is not supported; supported: {options}")
    if config.get("bits") != 4:
        raise CheckpointError(f"{where}: quantization_config bits must be 4, got {config.get('bits')!r}")
    if config.get("dynamic"):
        raise CheckpointError(f"{where}: dynamic (other rounding for some modules) is not supported")
    try:
        quant = QuantConfig(4, config.get("group_size", 128), not config.get("sym", False))
    except ValueError as error:
        raise CheckpointError(f"{where}: quantization_config {error}") from None
    return CHECKPOINT_FORMATS[name], quant, ()
