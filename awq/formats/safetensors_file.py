"""Reads the tensors of one safetensors file, which is mapped, not loaded: opening reads its header only.

Pages of the file that were read count as memory of the process until their mapping is gone, which is when the last
tensor in it is. So the file is mapped anew after every REOPEN_BYTES: a model whose tensors are packed one after the
other does not hold its file beside them.
"""

from pathlib import Path
from typing import Any

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

REOPEN_BYTES = 256 << 20


class SafetensorsFile:
    """The tensors of a file.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = self._open()
        self._read_bytes = 0  # since it was mapped

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        return list(self._handle.keys())

    def info(self, name: str) -> TensorInfo:
        view = self._handle.get_slice(name)
        return TensorInfo(DTYPES.get(view.get_dtype()), tuple(view.get_shape()))

    def tensor(self, name: str) -> Tensor:
        if self._read_bytes >= REOPEN_BYTES:
            self._handle = self._open()
            self._read_bytes = 0
        try:
            tensor: Tensor = self._handle.get_tensor(name)
            self._read_bytes += tensor.numel() * tensor.element_size()
            return tensor
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self._path}: tensor {name} cannot be read: {error}") from error

    def file_of(self, name: str) -> str:
        return str(self._path)

    def _open(self) -> Any:
        try:
            return safe_open(self._path, framework="pt")
        except (SafetensorError, OSError) as error:
            size = self._path.stat().st_size if self._path.exists() else 0
            raise CheckpointError(
                f"{self._path}: not a complete safetensors file ({error}; it has {size} bytes); copy or download it "
                "again"
            ) from error
