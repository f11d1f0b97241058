"""Reads the weights of a Hugging Face folder: one file, or the shards that an index names; safetensors or pickled.

Of a pickled file (`.bin`) only tensors are ever unpickled. Knows nothing of quantization.
"""

from collections.abc import Callable
from pathlib import Path

from awq.formats.checkpoint import CheckpointError, TensorSource
from awq.formats.json_file import read_json
from awq.formats.overlay import Joined
from awq.formats.pickled_file import PickledFile
from awq.formats.safetensors_file import SafetensorsFile

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MODEL_FILES = (WEIGHTS_FILE, "pytorch_model.bin")  # of a whole model, in the order in which they are looked for

OPENERS: dict[str, Callable[[Path], TensorSource]] = {".safetensors": SafetensorsFile, ".bin": PickledFile}


def find_weights(folder: Path, files: tuple[str, ...] = MODEL_FILES) -> str | None:
    """The first of `files` that a folder holds, whole or in shards; None: it holds none."""
    return next((file for file in files if any((folder / name).is_file() for name in (file, _index(file)))), None)


class WeightsFolder(Joined):
    """The tensors of a folder.

    Args:
        folder: holds one of `files`, or its index with the shards.
        files: names ending in .safetensors or .bin; the first one that is there counts.

    Raises:
        CheckpointError: no such files, damaged ones, or an index that does not fit its shards.
    """

    def __init__(self, folder: Path, files: tuple[str, ...] = MODEL_FILES) -> None:
        self._folder = folder
        super().__init__({})
        file = find_weights(folder, files)
        if file is None:
            raise CheckpointError(_describe_missing(folder, files))
        shards = _read_index(folder, file)
        for shard in dict.fromkeys(shards.values()) if shards else [file]:
            self._open(shard)
        for name, shard in shards.items():
            if name not in self._source_of or self.file_of(name) != str(folder / shard):
                raise CheckpointError(f"{folder / _index(file)}: tensor {name} is not in {shard}")

    def __str__(self) -> str:
        return str(self._folder)

    def _open(self, file: str) -> None:
        path = self._folder / file
        if not path.is_file():
            raise CheckpointError(f"{path}: the file is missing, though the index names it")
        source = OPENERS[path.suffix](path)
        for name in source.names():
            if name in self._source_of:
                raise CheckpointError(f"{path}: tensor {name} is also in {Path(self.file_of(name)).name}")
            self._source_of[name] = source


def _index(file: str) -> str:
    return f"{file}.index.json"


def _read_index(folder: Path, file: str) -> dict[str, str]:
    """Tensor name -> file name; empty where there is no index."""
    path = folder / _index(file)
    if not path.is_file():
        return {}
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be a non-empty object")
    suffix = Path(file).suffix
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(suffix):
            raise CheckpointError(f"{path}: {name} must name a {suffix} file in this folder, got {shard!r}")
    return weight_map


def _describe_missing(folder: Path, files: tuple[str, ...]) -> str:
    text = f"{folder}: neither {' nor '.join(files)} is there, nor an index of one"
    others = sorted(path.name for kind in ("*.safetensors", "*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    return f"{text}; found {others[0]}" if others else text
