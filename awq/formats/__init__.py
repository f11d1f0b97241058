"""Checkpoints: which formats there are, and the one function that opens any of them.

A format is one file beside this one and one line in QUANT_METHODS or WRITERS. Knows no model.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from awq.formats import auto_awq, compressed_tensors, gptq
from awq.formats.auto_awq import write_awq_folder
from awq.formats.checkpoint import Checkpoint, CheckpointError, Layout, dequantized_state
from awq.formats.compressed_tensors import write_compressed_tensors_folder
from awq.formats.json_file import read_json
from awq.formats.output import check_output
from awq.formats.pt_file import read_llm_awq, write_llm_awq_v2
from awq.formats.weights_folder import WeightsFolder
from awq.quantize import QuantConfig, QuantizedTensor

__all__ = [
    "WRITERS",
    "Checkpoint",
    "CheckpointError",
    "check_output",
    "dequantized_state",
    "open_checkpoint",
    "write_awq_folder",
    "write_compressed_tensors_folder",
    "write_llm_awq_v2",
]

QuantizationReader = Callable[[Mapping[str, Any], str], tuple[Layout, QuantConfig, tuple[str, ...]]]

# quant_method in config.json -> what reads the rest of the quantization_config
QUANT_METHODS: dict[str, QuantizationReader] = {
    "awq": auto_awq.read_quantization_config,
    "compressed-tensors": compressed_tensors.read_quantization_config,
    "gptq": gptq.read_quantization_config,
}

Writer = Callable[[Path, Path, Mapping[str, Tensor], Mapping[str, QuantizedTensor], QuantConfig], None]

# name on a command line -> what writes it: output, source folder, state, quantized and config as of write_awq_folder
WRITERS: dict[str, Writer] = {
    "awq-gemm": write_awq_folder,
    "compressed-tensors": write_compressed_tensors_folder,
    "llm-awq-v2": lambda output, _, state, quantized, config: write_llm_awq_v2(output, state, quantized, config),
}

# Two checkpoints that differ in one of these are not the same model.
IDENTITY_FIELDS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def open_checkpoint(model_path: Path, quant_path: Path | None = None) -> Checkpoint:
    """Opens a model, 16-bit or quantized; headers are read and checked, weights are not.

    Args:
        model_path: a Hugging Face folder; may itself be quantized. With a quant_path only its config is used.
        quant_path: where the quantized model is: a Hugging Face folder or a .pt file of llm-awq. All tensors come from
            here, not only the quantized ones, because AWQ's scales are folded into norms as well.

    Raises:
        CheckpointError: names the file, the tensor or field, what came and what is supported.
    """
    config = _read_config(model_path)
    if quant_path is None:
        return _open_folder(model_path, config)
    if quant_path.is_dir():
        quant_config = _read_config(quant_path)
        _require_same_model(config, quant_config, model_path, quant_path)
        if _quantization_config(quant_config) is None:
            raise CheckpointError(
                f"{quant_path / 'config.json'}: no quantization_config, so it is not a quantized model"
            )
        return _open_folder(quant_path, quant_config)
    if not quant_path.exists():
        raise CheckpointError(f"quantized checkpoint {quant_path} does not exist")
    if quant_path.suffix != ".pt":
        raise CheckpointError(f"{quant_path}: a quantized checkpoint is a Hugging Face folder or a .pt file of llm-awq")
    return Checkpoint(config, *read_llm_awq(quant_path))


def _open_folder(folder: Path, config: dict[str, Any]) -> Checkpoint:
    source = WeightsFolder(folder)
    quantization = _quantization_config(config)
    if quantization is None:
        return Checkpoint(config, source)
    where = str(folder / "config.json")
    method = quantization.get("quant_method")
    if method not in QUANT_METHODS:
        raise CheckpointError(
            f"{where}: quant_method {method!r} is not supported; supported: {', '.join(QUANT_METHODS)}"
        )
    layout, quant, excluded = QUANT_METHODS[method](quantization, where)
    checkpoint = Checkpoint(config, source, layout, quant, excluded)
    if not checkpoint.modules():
        raise CheckpointError(f"{where}: declares {layout.name}, but no tensor ends in .{layout.suffixes[0]}")
    return checkpoint


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    return read_json(folder / "config.json")


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """At the top level, or, as some vision-language checkpoints have it, in the language model's part."""
    parts = [config, *(config.get(name) for name in ("text_config", "llm_config"))]
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("quantization_config"), dict):
            return part["quantization_config"]
    return None


def _require_same_model(model: Mapping[str, Any], quant: Mapping[str, Any], model_path: Path, quant_path: Path) -> None:
    """A model that reads images may be quantized as a whole or as its language model alone."""
    ours, theirs = _language_part(model), _language_part(quant)
    is_plain = ours is model and theirs is quant
    for field in IDENTITY_FIELDS:
        if (is_plain or (field in ours and field in theirs)) and ours.get(field) != theirs.get(field):
            values = f"{field} is {theirs.get(field)!r} and {ours.get(field)!r}"
            raise CheckpointError(f"{quant_path} is not a quantized {model_path}: {values}")


def _language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the configuration of a model that reads images: in an object of its own, or, as LLaVA has it, among all."""
    if isinstance(config.get("text_config"), dict):
        return config["text_config"]
    if "mm_vision_tower" in config:
        return {name: value for name, value in config.items() if name != "model_type"}
    return config
