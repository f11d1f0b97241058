"""Decides how an output comes into being: under a temporary name beside its place, complete, then renamed.

So a reader never sees half a checkpoint, and a failure leaves nothing under the final name. Knows no format.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from awq.errors import UserError
from awq.formats.weights_folder import INDEX_FILE, WEIGHTS_FILE

SHARD_BYTES = 1_000_000_000  # one shard is in memory at a time

# What a model folder holds besides config.json and weights: tokenizer, processors, generation defaults, licenses, code.
BESIDE_TOKENIZER = ("generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*")
COMPANIONS = (
    *BESIDE_TOKENIZER,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*.py",
)

TOWER_FIELD = "mm_vision_tower"  # of a config.json


def check_output(output: Path, overwrite: bool = False) -> None:
    """Refuses a place that already holds something; call it before long work.

    An empty folder is taken. Anything else is kept unless `overwrite`: a quantized model took hours to make.

    Raises:
        UserError: the output exists.
    """
    taken = output.exists() and not (output.is_dir() and not any(output.iterdir()))
    if taken and not overwrite:
        raise UserError(f"{output} already exists; remove it or name another output")


@contextmanager
def new_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `output` when the block ends without an error, and is removed otherwise.

    Raises:
        UserError: the output exists.
    """
    with _temporary(output, overwrite) as temporary:
        folder = temporary / "new"
        folder.mkdir()
        yield folder
        _open_permissions(folder)
        if output.exists():
            output.rename(temporary / "old")  # gone with the temporary folder
        folder.rename(output)


@contextmanager
def new_file(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """As new_folder, for one file; yields the path to write to.

    Raises:
        UserError: the output exists, or is a folder.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file")
    with _temporary(output, overwrite) as temporary:
        path = temporary / output.name
        yield path
        _open_permissions(temporary)
        path.replace(output)


@contextmanager
def _temporary(output: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder on the output's file system, where renaming is atomic; removed with its content at the end."""
    check_output(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        yield Path(folder)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_companions(source: Path, folder: Path, patterns: Sequence[str] = COMPANIONS) -> None:
    """Copies tokenizer, templates and the like, following links (a hub cache is made of them)."""
    paths = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        shutil.copyfile(path, folder / path.name)


def copy_vision_tower(source: Path, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Copies the vision tower of LLaVA's layout where it is a folder named relative to the model's.

    Returns:
        The config for the copy; an absolute folder and a name in a cache mean the same from everywhere.
    """
    name = config.get(TOWER_FIELD)
    if not isinstance(name, str) or Path(name).is_absolute() or not (source / name).is_dir():
        return dict(config)
    own = (source / name).resolve()
    if own == source.resolve():  # an empty name
        return dict(config)
    shutil.copytree(own, folder / own.name)
    return {**config, TOWER_FIELD: own.name}


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.safetensors, or numbered shards with an index where that would pass `shard_bytes`.

    Takes one tensor after the other, so never more than one shard is in memory if they come that way.

    Raises:
        UserError: they cannot be written; says why.
    """
    shard: dict[str, Tensor] = {}
    files: list[list[str]] = []
    held = total = 0

    def flush() -> None:
        try:
            save_file(shard, folder / f"shard-{len(files)}", metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"weights cannot be written to {folder.parent.parent}: {error}") from error
        files.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > shard_bytes:
            flush()
            held = 0
        own = own_memory(tensor)
        shared = any(other.data_ptr() == own.data_ptr() for other in shard.values())
        shard[name] = own.clone() if shared else own
        held += size
        total += size
    flush()
    if len(files) == 1:
        (folder / "shard-0").rename(folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save_pt(value: object, path: Path) -> None:
    """torch.save.

    Raises:
        UserError: the file cannot be written; says why.
    """
    try:
        torch.save(value, path)
    except RuntimeError as error:  # its writer's only kind; it does not say when the disk is full
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path.name} cannot be written to {path.parent.parent}: is the disk full? ({reason})"
        ) from error


def own_memory(tensor: Tensor) -> Tensor:
    """A CPU copy, or the tensor itself where it already is all of its memory: savers refuse or bloat views."""
    tensor = tensor.detach().cpu()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _open_permissions(folder: Path) -> None:
    """Temporary folders and safetensors files are made private; a model is as readable as any new file."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    folder.chmod(0o777 & ~umask)
