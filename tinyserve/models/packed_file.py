"""A file of packed weights: what stands where in it, and how damage shows.

It is a safetensors file, whose header says by what facts it was made, which weights there are, and a CRC-32 of every
piece of their bytes and of the header itself. Bytes are read straight into the memory that they are to stay in, pieces
at a time on several threads: a mapping of the file would keep them in pages of 4 KB (layers/huge_pages.py), and copying
out of one would touch each of those pages first. Knows no checkpoint and does not judge the facts.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tinyserve.ops import PackedWeight, PackedWeight8

PIECE_BYTES = 16 << 20  # read and checked at once
HEADER_ALIGNMENT = 4096  # bytes: tensors begin on a page
MAX_HEADER_BYTES = 64 << 20

KINDS: dict[str, type[PackedWeight] | type[PackedWeight8]] = {"w4": PackedWeight, "w8": PackedWeight8}
DTYPES = {"I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "F16": torch.float16, "F32": torch.float32}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DESCRIPTION = "tinyserve"  # the metadata that holds all but the tensors' places

Weight = TypeVar("Weight", PackedWeight, PackedWeight8)
Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]


class DamagedFile(ValueError):
    """The file is not what was written; the text says where."""


@dataclass(frozen=True)
class _Place:
    """Of one tensor in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning


def write_packed(file: FileIO, facts: Mapping[str, str], weights: Mapping[str, PackedWeight | PackedWeight8]) -> None:
    """Writes all of it.

    Args:
        file: empty.
        facts: what PackedFile.facts will be.
        weights: on the CPU, by name.

    Raises:
        OSError: it cannot be written, or not to its end.
    """
    kind_names = {kind: name for name, kind in KINDS.items()}
    described, header, tensors, offset = {}, {}, [], 0
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for name, weight in weights.items():
            numbers, parts = _fields(weight)
            sums = {part: list(threads.map(zlib.crc32, _pieces(tensor))) for part, tensor in parts.items()}
            described[name] = {"kind": kind_names[type(weight)], "numbers": numbers, "crc32": sums}
            for part, tensor in parts.items():
                end = offset + tensor.numel() * tensor.element_size()
                place = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
                header[f"{name}.{part}"] = place
                tensors.append(tensor)
                offset = end
    description: dict[str, Any] = {"facts": dict(facts), "weights": described}
    description["crc32"] = _header_sum(header, description)
    text = json.dumps({"__metadata__": {DESCRIPTION: json.dumps(description)}, **header}).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    for piece in (len(text).to_bytes(8, "little"), text):
        _write_all(file, memoryview(piece))
    for tensor in tensors:
        for bytes_of_it in _pieces(tensor):
            _write_all(file, bytes_of_it)


class PackedFile:
    """Reads such a file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DamagedFile: its header is damaged, or it has another length than the header says.
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path)
        try:
            tensors, description, data_start = _read_header(self._file, path.stat().st_size)
        except BaseException:
            self._file.close()
            raise
        self.facts: dict[str, str] = description["facts"]
        self._weights: dict[str, dict[str, Any]] = description["weights"]
        self._places = {
            name: _Place(DTYPES[each["dtype"]], tuple(each["shape"]), data_start + each["data_offsets"][0])
            for name, each in tensors.items()
        }
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    def close(self) -> None:
        self._threads.shutdown()
        self._file.close()

    def weight(self, name: str, kind: type[Weight], empty: Empty) -> Weight | None:
        """One weight in memory from `empty`; None: there is none of that name and kind.

        Raises:
            OSError: it cannot be read.
            DamagedFile: its bytes are not those that were written.
        """
        described = self._weights.get(name)
        if described is None or KINDS.get(described["kind"]) is not kind:
            return None
        parts: dict[str, Any] = {
            part: self._tensor(f"{name}.{part}", sums, empty) for part, sums in described["crc32"].items()
        }
        return kind(**described["numbers"], **parts)

    def _tensor(self, name: str, sums: list[int], empty: Empty) -> Tensor:
        place = self._places[name]
        tensor = empty(place.shape, place.dtype)
        pieces = list(_pieces(tensor))
        starts = [place.start + index * PIECE_BYTES for index in range(len(pieces))]
        if list(self._threads.map(self._read, pieces, starts)) != sums:
            raise DamagedFile(f"the bytes of {name} are not those that were written")
        return tensor

    def _read(self, piece: memoryview, start: int) -> int:
        """Fills `piece` from the byte `start` on; returns its CRC-32."""
        rest = piece
        while rest:
            count = os.preadv(self._file.fileno(), [rest], start)
            if count == 0:
                raise DamagedFile(f"it ends at byte {start}")
            rest, start = rest[count:], start + count
        return zlib.crc32(piece)


def _read_header(file: FileIO, size: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The tensors' places, the description, and the byte where tensors begin, of a file of `size` bytes."""
    length = int.from_bytes(file.read(8) or b"", "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise DamagedFile(f"a header of {length} bytes")
    try:
        tensors: dict[str, Any] = json.loads(file.read(length) or b"")
        description: dict[str, Any] = json.loads(tensors.pop("__metadata__")[DESCRIPTION])
        is_whole = description.pop("crc32") == _header_sum(tensors, description)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"the header cannot be read: {type(error).__name__}: {error}") from error
    if not is_whole:
        raise DamagedFile("the header is not the one that was written")
    data_start = 8 + length
    expected = data_start + max((place["data_offsets"][1] for place in tensors.values()), default=0)
    if size != expected:
        raise DamagedFile(f"it has {size} bytes and not {expected}")
    return tensors, description, data_start


def _fields(weight: PackedWeight | PackedWeight8) -> tuple[dict[str, int], dict[str, Tensor]]:
    fields = vars(weight)
    tensors = {name: value.contiguous() for name, value in fields.items() if isinstance(value, Tensor)}
    return {name: value for name, value in fields.items() if name not in tensors}, tensors


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor on the CPU."""
    size = math.prod(tensor.shape) * tensor.element_size()
    memory = tensor.view(-1).view(torch.uint8).numpy().data if size else memoryview(b"")
    return (memory[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES))


def _header_sum(tensors: Mapping[str, Any], description: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps([tensors, description], sort_keys=True).encode())


def _write_all(file: FileIO, piece: memoryview) -> None:
    while piece:
        piece = piece[file.write(piece) :]
