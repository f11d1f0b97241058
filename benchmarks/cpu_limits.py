"""The machine's limits for products of bytes, measured: bytes read per second, and multiply-adds of bytes per second.

Both by cpu_limits.c, compiled here for this processor, on as many threads as the products get. Reading is of memory in
huge pages, far larger than any cache, each thread a part of its own; a multiply-add (VPDPBUSD where there is one)
works in registers, on twelve independent sums.
"""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyserve.layers.huge_pages import huge_bytes

SOURCE = Path(__file__).with_name("cpu_limits.c")
READ_BYTES = 1 << 30
ROUNDS = 4_000_000  # of twelve instructions: some 10 ms
REPEATS = 7


@dataclass(frozen=True)
class Limits:
    read_bytes_per_s: float
    macs_per_s: float

    def seconds(self, num_bytes: float, macs: float) -> float:
        """The shortest time in which so much can be read and multiplied."""
        return max(num_bytes / self.read_bytes_per_s, macs / self.macs_per_s)


def measure(threads: int) -> Limits:
    """The best of several tries: others on the machine can only make it slower.

    Raises:
        RuntimeError: no compiler, or it knows no dot product of bytes for this processor.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        library = _compiled(Path(folder))
        memory = huge_bytes(READ_BYTES)
        memory.fill_(1)
        part = READ_BYTES // threads // 4096 * 4096
        starts = [memory.data_ptr() + i * part for i in range(threads)]

        def on_all(function: Any, *arguments: list[Any]) -> list[int]:
            return list(pool.map(function, *arguments))

        counts = on_all(library.dot_products, [ROUNDS] * threads)
        multiply = _best(lambda: on_all(library.dot_products, [ROUNDS] * threads))
        read = _best(lambda: on_all(library.read_bytes, starts, [part] * threads))
    return Limits(part * threads / read, sum(counts) / multiply)


def _compiled(folder: Path) -> ctypes.CDLL:
    target = folder / "cpu_limits.so"
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-O2", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{SOURCE.name} needs a C compiler: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr[-1000:]}")
    library = ctypes.CDLL(str(target))
    library.dot_products.argtypes = [ctypes.c_int64]
    library.read_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.dot_products.restype = library.read_bytes.restype = ctypes.c_int64
    return library


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
