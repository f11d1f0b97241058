"""Rewrites a quantized checkpoint in another format: codes and zeros bit for bit, one tensor in memory at a time.

No model is built and nothing is rounded again. Which formats there are is decided in awq/formats.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch

from awq.errors import UserError
from awq.formats import WRITERS, Checkpoint, check_output, open_checkpoint
from awq.formats.checkpoint import FLOAT16
from awq.formats.overlay import Overlay, Renamed
from awq.formats.weights_folder import WeightsFolder, find_weights
from awq.lazy import Lazy
from awq.quantize import QuantConfig, QuantizedTensor

IMAGES = re.compile(r"vision_tower\.|mm_projector\.|multi_modal_projector\.|image_newline$")  # tensors for images


def convert_checkpoint(
    source: Path, output: Path, format_name: str, model_path: Path | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes `output` with the weights of `source`.

    Where every zero is 8 the output is symmetric, whatever the source says: AWQ's formats store such zeros, and
    engines have faster kernels for checkpoints without them.

    Args:
        source: a quantized Hugging Face folder, or a `.pt` file of llm-awq.
        output: a folder, or a `.pt` file for llm-awq-v2.
        format_name: one of awq.formats.WRITERS.
        model_path: where config.json, tokenizer and the like are taken from; needed for a `.pt` source, which has none.
        dtype: of scales and 16-bit tensors; None: as the scales are stored.

    Raises:
        UserError: the source is not quantized or cannot be read, the output exists, or the format cannot hold it.
    """
    check_output(output)
    if model_path is None:
        if source.is_file():
            raise UserError(f"{source} holds no config.json and no tokenizer: name a model folder with --model_path")
        model_path, checkpoint = source, open_checkpoint(source)
    else:
        checkpoint = _with_images(open_checkpoint(model_path, source), model_path)
    if checkpoint.quant is None:
        raise UserError(f"{source} is not quantized; --w_bit with --dump_quant quantizes a 16-bit model")
    config = replace(checkpoint.quant, zero_point=not _is_symmetric(checkpoint))
    scale_dtype = dtype or _scale_dtype(checkpoint)

    def weight(module: str) -> QuantizedTensor:
        return _recast(checkpoint.quantized(module), config, scale_dtype, module)

    companions = source if source.is_dir() else model_path
    state = Lazy(checkpoint.names(), checkpoint.tensor)
    WRITERS[format_name](output, companions, state, Lazy(checkpoint.modules(), weight), config)


def _with_images(checkpoint: Checkpoint, model_path: Path) -> Checkpoint:
    """A language model's checkpoint with what the model folder has for images, since config.json promises it."""
    if find_weights(model_path) is None:
        return checkpoint
    whole = WeightsFolder(model_path)
    images = Renamed(whole, {name: name for name in whole.names() if IMAGES.search(name)})
    return checkpoint.with_source(lambda own: Overlay(own, images))


def _is_symmetric(checkpoint: Checkpoint) -> bool:
    """Reads all of a symmetric checkpoint; the first layer of another one already tells."""
    return all(bool((checkpoint.quantized(module).zeros == 8).all()) for module in checkpoint.modules())


def _scale_dtype(checkpoint: Checkpoint) -> torch.dtype:
    module = checkpoint.modules()[0]
    dtype = checkpoint.quantized(module).scales.dtype
    if dtype not in FLOAT16:
        raise UserError(f"{module} has scales of {dtype}, which few engines read: add --dtype float16 or bfloat16")
    return dtype


def _recast(weight: QuantizedTensor, config: QuantConfig, dtype: torch.dtype, module: str) -> QuantizedTensor:
    scales = weight.scales.to(dtype)
    if not bool(torch.isfinite(scales).all()):
        raise UserError(f"{module}: scales up to {float(weight.scales.abs().max()):.4g} do not fit into {dtype}")
    return QuantizedTensor(weight.codes, scales, weight.zeros, config)
