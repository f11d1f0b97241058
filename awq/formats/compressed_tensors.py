"""The Hugging Face folder with `quant_method` compressed-tensors, `format` pack-quantized, as llm-compressor writes it.

Per quantized module, for N out features, K in features and groups of G:
    weight_packed      int32 [N, K/8]            nibble i of word [n, c] is the code of in channel 8c + i
    weight_scale       fp16 or bf16 [N, K/G]
    weight_shape       int64 [2]                 N and K
    weight_zero_point  int32 [ceil(N/8), K/G]    nibble i of word [r, g] is the zero of out channel 8r + i;
                                                 only where rounding is asymmetric
The format speaks of codes and zeros as -8 to 7 and stores them plus 8, which is what they are here. Knows no model.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.formats.checkpoint import FLOATS, INT32, CheckpointError, Dtypes, Layout
from awq.formats.model_folder import write_model_folder
from awq.formats.nibbles import PER_WORD, pack_columns, pack_rows, unpack_columns, unpack_rows
from awq.formats.output import SHARD_BYTES
from awq.formats.skipped import HEAD, skipped_parts
from awq.quantize import QuantConfig, QuantizedTensor

FORMAT = "pack-quantized"


def encode(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The stored tensors of a module by suffix."""
    tensors = {
        "weight_packed": pack_columns(weight.codes),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor([weight.n, weight.k]),
    }
    if weight.config.zero_point:
        padded = torch.nn.functional.pad(weight.zeros, (0, 0, 0, -weight.n % PER_WORD))
        tensors["weight_zero_point"] = pack_rows(padded)
    return tensors


def _decode(tensors: Mapping[str, Tensor], config: QuantConfig) -> QuantizedTensor:
    codes, scales = unpack_columns(tensors["weight_packed"]), tensors["weight_scale"]
    if "weight_shape" in tensors and tensors["weight_shape"].tolist() != list(codes.shape):
        shape = tensors["weight_shape"].tolist()
        raise ValueError(f"weight_shape says {shape}, but weight_packed holds {list(codes.shape)}")
    if "weight_g_idx" in tensors:
        raise ValueError("weight_g_idx: activation ordering is not supported")
    if config.zero_point:
        zeros = unpack_rows(tensors["weight_zero_point"])[: codes.shape[0]]
    else:
        zeros = torch.full(scales.shape, config.symmetric_zero, dtype=torch.uint8)
    return QuantizedTensor(codes, scales, zeros, config)


def _expected(n: int, k: int, group: int) -> dict[str, tuple[Dtypes, tuple[int, ...]]]:
    return {
        "weight_packed": (INT32, (n, k // PER_WORD)),
        "weight_scale": (FLOATS, (n, k // group)),
        "weight_shape": ((torch.int64,), (2,)),
        "weight_zero_point": (INT32, (-(-n // PER_WORD), k // group)),
    }


def _layout(zero_point: bool) -> Layout:
    return Layout(
        name=f"compressed-tensors {FORMAT}",
        suffixes=("weight_packed", "weight_scale", *(("weight_zero_point",) if zero_point else ())),
        size=lambda shape: (shape[0], shape[1] * PER_WORD),
        expected=_expected,
        decode=_decode,
        optional=("weight_shape", "weight_g_idx"),
    )


def read_quantization_config(config: Mapping[str, Any], where: str) -> tuple[Layout, QuantConfig, tuple[str, ...]]:
    """The layout and the rounding that a `quantization_config` with quant_method compressed-tensors declares.

    Args:
        config: the object from config.json.
        where: the file, for messages.

    Raises:
        CheckpointError: names the field, what came and what is supported: 4-bit integer weights of one kind, 16-bit
            activations.
    """
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where}: quantization_config config_groups must be a non-empty object, got {groups!r}")
    kinds = {_read_group(name, group, config, where) for name, group in groups.items()}
    if len(kinds) > 1:
        raise CheckpointError(f"{where}: config_groups must all round alike, got {len(kinds)} different ones")
    for name in ("transform_config", "sparsity_config"):
        if config.get(name):
            raise CheckpointError(f"{where}: {name} is not supported, got {config[name]!r}")
    quant = kinds.pop()
    # What is stored tells which modules are quantized; `ignore` only repeats it.
    return _layout(quant.zero_point), quant, ()


def _read_group(name: str, group: Any, config: Mapping[str, Any], where: str) -> QuantConfig:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: config_groups {name} must have an object `weights`, got {weights!r}")
    strategy = weights.get("strategy")
    supported: dict[str, tuple[object, tuple[object, ...]]] = {
        "format": (group.get("format") or config.get("format"), (FORMAT,)),
        "input_activations": (group.get("input_activations"), (None,)),
        "output_activations": (group.get("output_activations"), (None,)),
        "num_bits": (weights.get("num_bits"), (4,)),
        "type": (weights.get("type"), ("int",)),
        "strategy": (strategy, ("group", "channel")),
        "symmetric": (weights.get("symmetric"), (True, False)),
        "actorder": (weights.get("actorder"), (None, False, "weight", "static")),
    }
    for field, (value, allowed) in supported.items():
        if value not in allowed:
            options = " or ".join(repr(option) for option in allowed)
            raise CheckpointError(f"{where}: config_groups {name} {field} must be {options}, got {value!r}")
    group_size: Any = weights.get("group_size") if strategy == "group" else -1
    try:
        return QuantConfig(4, group_size, not weights["symmetric"])
    except ValueError as error:
        raise CheckpointError(f"{where}: config_groups {name} {error}") from None


def write_compressed_tensors_folder(
    output: Path,
    source: Path,
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    config: QuantConfig,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a folder that vLLM, SGLang and transformers load as one of llm-compressor's.

    Arguments and errors are those of awq.formats.write_awq_folder; any number of out features can be stored, and
    symmetric rounding stores no zeros.
    """
    write_model_folder(
        output,
        source,
        state,
        quantized,
        config,
        encode=encode,
        multiple_n=1,
        describe=partial(_quantization_config, config),
        shard_bytes=shard_bytes,
        overwrite=overwrite,
    )


def _quantization_config(config: QuantConfig, matrices: Sequence[str], quantized: Sequence[str]) -> dict[str, Any]:
    per_row = config.group_size == -1
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": not config.zero_point,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else config.group_size,
        "dynamic": False,
    }
    group = {
        "format": FORMAT,
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    heads = sorted({HEAD, *(module for module in matrices if module.endswith(f".{HEAD}"))})
    parts = [part for part in skipped_parts(matrices, quantized) if part != HEAD]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        # Under any prefix, with all that is inside.
        "ignore": [*heads, *(rf"re:(.*\.)?{re.escape(part)}(\..*)?$" for part in parts)],
        "kv_cache_scheme": None,
    }
