"""Packed weights kept on disk between two starts, for a CPU: a model is then ready as soon as they are read.

It decides where the file is, whether it still belongs to the checkpoint, and when it is written anew: it is never
trusted, only compared. Everything that makes packed weights what they are is a fact that is stored beside them: the
checkpoint's files (names, sizes, times of change), dtype and rounding, and the layout, of which the packing ops
themselves give a sample, so that no number has to be raised by whoever changes one. Knows no tensor names.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch

from tinyserve import ops
from tinyserve.models.packed_file import DamagedFile, Empty, PackedFile, Weight, write_packed
from tinyserve.ops import PackedWeight, PackedWeight8

_log = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pt", ".json")
# Not .safetensors: other engines load every such file of a folder.
SUFFIX = ".packed"


class PackedCache:
    """One file, read at a start and written at its end where anything in it was missing, stale or damaged.

    Args:
        path: of the file.
        facts: what must have been the same when it was written.
    """

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self._path = path
        self._facts = facts
        self._weights: dict[str, PackedWeight | PackedWeight8] = {}  # of this start
        self._is_complete = True  # everything came from the file
        self._file = self._open()

    @classmethod
    def of_model(
        cls, folder: Path | None, model_path: Path, quant_path: Path | None, dtype: torch.dtype, rounded: bool
    ) -> "PackedCache":
        """The cache of one checkpoint in one dtype.

        Args:
            folder: where the file is, which others may share; None: beside the 4-bit weights.
            rounded: whether the output layer has 8 bits.

        Raises:
            ValueError: `folder` is something else.
        """
        weights = (quant_path or model_path).resolve()
        name = f"{weights.stem if weights.is_file() else weights.name}-{_text(dtype)}-{'int8' if rounded else 'exact'}"
        if folder is None:
            place = weights.parent if weights.is_file() else weights
        elif folder.exists() and not folder.is_dir():
            raise ValueError(f"--packed-cache must be a folder, got the file {folder}")
        else:
            place, name = folder, f"{name}-{hashlib.sha256(str(weights).encode()).hexdigest()[:12]}"
        facts = {
            "checkpoint": _stamp([model_path, quant_path] if quant_path else [model_path]),
            "dtype": _text(dtype),
            "output layer": "8 bits" if rounded else "as stored",
            "layout": _layout(),
        }
        return cls(place / f"{name}{SUFFIX}", facts)

    def get(self, name: str, kind: type[Weight], n: int, k: int, empty: Empty) -> Weight | None:
        """The packed weight [n, k], in memory from `empty`; None: it has to be packed."""
        if self._file is None:
            return None
        try:
            weight = self._file.weight(name, kind, empty)
        except (DamagedFile, OSError) as error:
            _log.warning("packed weights: %s is damaged (%s): packing again", self._path, error)
            self._close()
            return None
        if weight is None or (weight.n, weight.k) != (n, k):
            return None
        self._weights[name] = weight
        return weight

    def add(self, name: str, weight: PackedWeight | PackedWeight8) -> None:
        """One that was packed because `get` had none."""
        self._weights[name] = weight
        self._is_complete = False

    def save(self) -> None:
        """To be called when all weights are there. What cannot be written is said in the log, and served all the same.

        Under a temporary name until it is whole: whoever starts meanwhile sees the old file or none.
        """
        self._close()
        if self._is_complete or not self._weights:
            return
        start = time.perf_counter()
        try:
            with _new_file(self._path) as file:
                write_packed(file, self._facts, self._weights)
        except BlockingIOError:
            _log.info("packed weights: another process is writing %s", self._path)
            return
        except OSError as error:
            _log.warning("packed weights: %s cannot be written (%s): the next start packs again", self._path, error)
            return
        size, seconds = self._path.stat().st_size, time.perf_counter() - start
        _log.info("packed weights: wrote %s, %.0f MB in %.1f s", self._path, size / 1e6, seconds)

    def _open(self) -> PackedFile | None:
        try:
            file = PackedFile(self._path)
        except FileNotFoundError:
            _log.info("packed weights: %s is not there yet", self._path)
            return None
        except (DamagedFile, OSError) as error:
            _log.warning("packed weights: %s is damaged (%s): packing again", self._path, error)
            return None
        changed = [name for name, value in self._facts.items() if file.facts.get(name) != value]
        if changed:
            _log.info("packed weights: %s has another %s: packing again", self._path, " and ".join(changed))
            file.close()
            return None
        _log.info("packed weights: from %s", self._path)
        return file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def _new_file(path: Path) -> Iterator[FileIO]:
    """A file that takes its name when the block ends without an error, and is gone otherwise.

    Its temporary name is always the same, so that what a killed process leaves, gigabytes, is there once at most.

    Raises:
        BlockingIOError: another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with FileIO(temporary, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not temporary.exists() or not os.path.samestat(os.fstat(file.fileno()), temporary.stat()):
            raise BlockingIOError  # it was another's, who has given it its name
        try:
            file.truncate(0)
            yield file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stamp(paths: Iterable[Path]) -> str:
    """Changes with every file that a checkpoint may consist of; contents are not read, which would take long."""
    digest = hashlib.sha256()
    for path in paths:
        files = path.iterdir() if path.is_dir() else [path]
        for file in sorted(file for file in files if file.suffix in CHECKPOINT_SUFFIXES and file.is_file()):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _layout() -> str:
    """A digest of what the packing ops make of one weight, its sizes ragged and its scales of both widths."""
    n, k, group = 72, 192, 64
    steps = torch.arange(n * k).view(n, k)
    codes, zeros = (steps * 7 // 3 % 16).to(torch.uint8), (steps[:, : k // group] % 16).to(torch.uint8)
    scales = (steps[:, : k // group] % 97 + 1) / 64
    digest = hashlib.sha256()
    for weight in (
        ops.w4a16_pack(codes, scales.half(), zeros),
        ops.w4a16_pack(codes, scales, zeros),
        ops.w8_pack((steps * 31 % 255 - 127) / 127),
    ):
        for name, value in sorted(vars(weight).items()):
            digest.update(f"{name} ".encode())
            digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else str(value).encode())
    return digest.hexdigest()
