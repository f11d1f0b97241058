"""Where a quantized model is written and found again: the names users give, and the formats they stand for.

`X.pt` is llm-awq's v2 file, anything else a folder. Layouts are the business of awq/formats, values that of awq/apply.
"""

from pathlib import Path

import torch

from awq import formats
from awq.apply import QuantizedModel, storage_dtype
from awq.errors import UserError
from awq.formats.output import copy_companions, copy_vision_tower, new_folder, write_config, write_shards
from awq.model import ModelFolder
from awq.quantize import QuantConfig
from awq.results import SearchResults, describe


def dump_path(path: Path) -> Path:
    """The file or folder that `--dump_quant path` makes: like llm-awq, `.pt` becomes `-v2.pt` unless it ends so."""
    if path.suffix == ".pt" and not path.name.endswith("v2.pt"):
        return path.with_name(path.name.removesuffix(".pt") + "-v2.pt")
    return path


def find_dump(path: Path) -> Path:
    """The checkpoint that `--load_quant path` means: that path, or the name that a dump to it was given.

    Raises:
        UserError: neither is there.
    """
    for candidate in (path, dump_path(path)):
        if candidate.exists():
            return candidate
    also = f" (nor {dump_path(path).name})" if dump_path(path) != path else ""
    raise UserError(f"--load_quant {path}: no such file or folder{also}")


def check_dump(path: Path) -> None:
    """Refuses a place that is taken, before long work.

    Raises:
        UserError: it holds something.
    """
    formats.check_output(dump_path(path))


def check_settings(path: Path, model_path: Path, config: QuantConfig) -> None:
    """Refuses to evaluate a checkpoint under other settings than it has.

    Raises:
        UserError: names both.
    """
    stored = formats.open_checkpoint(model_path, path).quant
    if stored is None or (stored.bits, stored.group_size) != (config.bits, config.group_size):
        raise UserError(f"{path} holds {describe(stored) if stored else '16 bits'}; asked for {describe(config)}")


def format_of(path: Path, name: str | None = None) -> str:
    """The format of a checkpoint that is to be written: the one that is named, else what the path suggests."""
    return name or ("llm-awq-v2" if path.suffix == ".pt" else "awq-gemm")


def write_dump(
    path: Path,
    model: ModelFolder,
    config: QuantConfig,
    results: SearchResults | None,
    dtype: torch.dtype | None = None,
    format_name: str | None = None,
) -> Path:
    """Quantizes and writes the model; returns what was written.

    Args:
        results: None: round to nearest.
        dtype: of scales and 16-bit tensors; None: the checkpoint's.
        format_name: one of awq.formats.WRITERS; None: what the path suggests.

    Raises:
        UserError: the place is taken, or the model cannot be stored in this format.
    """
    quantized = QuantizedModel(model, config, results, dtype)
    output = dump_path(path)
    name = format_of(output, format_name)
    formats.WRITERS[name](output, model.path, quantized.state, quantized.quantized, config)
    return output


def write_fake(
    path: Path,
    model: ModelFolder,
    config: QuantConfig,
    results: SearchResults | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a 16-bit model folder with the weights that the codes stand for.

    Raises:
        UserError: the place is taken.
    """
    stored = dtype or storage_dtype(model.dtype())
    tensors = ((name, tensor.to(stored)) for name, tensor in QuantizedModel(model, config, results, dtype).weights())
    with new_folder(path) as folder:
        write_shards(folder, tensors)
        dtype_name = str(stored).removeprefix("torch.")
        placed = copy_vision_tower(model.path, folder, model.checkpoint.config)
        write_config(folder, {**placed, "torch_dtype": dtype_name, "dtype": dtype_name})
        copy_companions(model.path, folder)
