"""Reads the tensors of a Hugging Face folder: model.safetensors, or the shards that an index names.

Files are mapped, not loaded: opening reads headers only. Knows nothing of quantization.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from awq.formats.checkpoint import CheckpointError, TensorInfo

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

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


class SafetensorsFolder:
    """The tensors of a folder.

    Args:
        folder: holds model.safetensors or model.safetensors.index.json with its shards.

    Raises:
        CheckpointError: no such files, damaged ones, or an index that does not fit its shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}  # file name -> open handle
        self._file_of: dict[str, str] = {}  # tensor name -> file name
        indexed = self._read_index()
        for file in dict.fromkeys(indexed.values()) if indexed else [WEIGHTS_FILE]:
            self._open(file)
        for name, file in indexed.items():
            if self._file_of.get(name) != file:
                raise CheckpointError(f"{folder / INDEX_FILE}: tensor {name} is not in {file}")

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        return list(self._file_of)

    def info(self, name: str) -> TensorInfo:
        view = self._files[self._file_of[name]].get_slice(name)
        return TensorInfo(DTYPES.get(view.get_dtype()), tuple(view.get_shape()))

    def tensor(self, name: str) -> Tensor:
        try:
            return self._files[self._file_of[name]].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name} cannot be read: {error}") from error

    def file_of(self, name: str) -> str:
        return str(self._folder / self._file_of[name])

    def _read_index(self) -> dict[str, str]:
        """Tensor name -> file name; empty where there is no index."""
        path = self._folder / INDEX_FILE
        if not path.is_file():
            if not (self._folder / WEIGHTS_FILE).is_file():
                raise CheckpointError(self._describe_missing())
            return {}
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: weight_map must be a non-empty object")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(f"{path}: {name} must name a .safetensors file in this folder, got {file!r}")
        return weight_map

    def _describe_missing(self) -> str:
        text = f"{self._folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there"
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in self._folder.glob(pattern))
        if pickled:
            text += f"; found {pickled[0]}, but only safetensors are read from a folder"
        return text

    def _open(self, file: str) -> None:
        path = self._folder / file
        if not path.is_file():
            raise CheckpointError(f"{path}: the file is missing, though {INDEX_FILE} names it")
        try:
            handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise CheckpointError(
                f"{path}: not a complete safetensors file ({error}; it has {size} bytes); copy or download it again"
            ) from error
        self._files[file] = handle
        for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
            if name in self._file_of:
                raise CheckpointError(f"{path}: tensor {name} is also in {self._file_of[name]}")
            self._file_of[name] = file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except (OSError, ValueError) as error:  # a JSON or UTF-8 error is a ValueError
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value
