"""Reads the tensors of one pickled state dict (`.pt`, `.bin`): as data only, never unpickled as code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from awq.formats.checkpoint import CheckpointError, TensorInfo


class PickledFile:
    """The tensors of a file, mapped from the file where its format allows.

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
        return self._tensors[name].detach()  # a trained parameter asks for gradients

    def file_of(self, name: str) -> str:
        return str(self._path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        # Only zip archives, which torch writes since 1.6, can be mapped. Damaged bytes raise nearly anything.
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: not a complete file of tensors only: {reason[0]}") from error
    if isinstance(content, dict) and {"scale", "clip"} <= content.keys():
        raise CheckpointError(f"{path}: holds search results, not weights; awq.entry --load_awq applies them")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: must hold a state dict, got {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} must be a tensor, got {type(tensor).__name__}")
    return dict(content)
