"""Reads the tensors of one safetensors file, which is mapped, not loaded: opening reads its header only."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from awq.formats.checkpoint import CheckpointError, TensorInfo

# Names of the dtypes in a safetensors header.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """The tensors of a file.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise CheckpointError(
                f"{path}: not a complete safetensors file ({error}; it has {size} bytes); copy or download it again"
            ) from error

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        return list(self._handle.keys())

    def info(self, name: str) -> TensorInfo:
        view = self._handle.get_slice(name)
        return TensorInfo(DTYPES.get(view.get_dtype()), tuple(view.get_shape()))

    def tensor(self, name: str) -> Tensor:
        try:
            return self._handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self._path}: tensor {name} cannot be read: {error}") from error

    def file_of(self, name: str) -> str:
        return str(self._path)
