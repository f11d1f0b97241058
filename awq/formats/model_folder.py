"""Writes a quantized Hugging Face folder: the same for every format that is one, whatever its tensors look like."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.formats.contents import KERNEL_K, check_config, plain_tensors, quantized_tensors, storage_dtype, tied_names
from awq.formats.json_file import read_json
from awq.formats.output import (
    SHARD_BYTES,
    check_output,
    copy_companions,
    copy_vision_tower,
    new_folder,
    write_config,
    write_shards,
)
from awq.formats.weights_folder import WeightsFolder, find_weights
from awq.quantize import QuantConfig, QuantizedTensor

Encoder = Callable[[QuantizedTensor], Mapping[str, Tensor]]
# From the names of the unquantized modules with a matrix, and of the quantized ones, to the quantization_config.
Describe = Callable[[Sequence[str], Sequence[str]], Mapping[str, Any]]


def write_model_folder(
    output: Path,
    source: Path,
    state: Mapping[str, Tensor],
    quantized: Mapping[str, QuantizedTensor],
    config: QuantConfig,
    *,
    encode: Encoder,
    multiple_n: int,
    describe: Describe,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes config.json, weights, and copies of tokenizer, processor, templates and generation defaults.

    Args:
        output: the folder to make. An existing one is refused unless it is empty.
        source: the folder the model came from, 16-bit or quantized.
        state: every tensor that is not quantized; cast to the dtype of the scales.
        quantized: module name -> its weight.
        config: how all of them were rounded.
        encode: the stored tensors of a module by suffix.
        multiple_n: what the format needs the out features to be a multiple of.
        describe: what config.json says about the format.
        shard_bytes: size above which the weights are split into several files.
        overwrite: replace an existing output, once the new one is complete.

    Raises:
        UserError: the output exists, a layer cannot be stored (names it and says why), or nothing is quantized.
    """
    check_config(config)
    check_output(output, overwrite)
    model_config = read_json(source / "config.json")
    dtype = storage_dtype(quantized)
    tied = tied_names(state, _stored_names(source, state), model_config)
    matrices: list[str] = []

    def plain() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in plain_tensors(state, quantized, dtype, tied):
            if name.endswith(".weight") and tensor.ndim > 1:
                matrices.append(name.removesuffix(".weight"))
            yield name, tensor

    def encoded() -> Iterator[tuple[str, Tensor]]:
        for module, weight in quantized_tensors(quantized, config, dtype, multiple_n, multiple_k=KERNEL_K):
            for suffix, tensor in encode(weight).items():
                yield f"{module}.{suffix}", tensor

    with new_folder(output, overwrite) as folder:
        write_shards(folder, chain(plain(), encoded()), shard_bytes)
        quantization = {"quantization_config": dict(describe(matrices, list(quantized)))}
        placed = copy_vision_tower(source, folder, without_quantization(model_config))
        write_config(folder, _with_dtype(placed, dtype) | quantization)
        copy_companions(source, folder)


def _stored_names(source: Path, state: Mapping[str, Tensor]) -> frozenset[str]:
    """The source's tensor names; where it holds no weights, as if it stored the whole state."""
    return frozenset(WeightsFolder(source).names() if find_weights(source) else state)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model without what it says of its quantization, at the top or in a part."""
    parts = (
        (name, without_quantization(value) if isinstance(value, dict) else value) for name, value in config.items()
    )
    return {name: value for name, value in parts if name != "quantization_config"}


def _with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The config with the dtype of its weights under both names: `torch_dtype`, and `dtype` of transformers 5."""
    name = str(dtype).removeprefix("torch.")
    return {**config, "torch_dtype": name, "dtype": name}
