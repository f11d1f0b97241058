"""Measured choices among w4a16_gemm's tile configurations, for one GPU: what benchmarks/tune_gemm.py writes.

TINYSERVE_GEMM_TABLE names the file; without it, or for a shape that it lacks, the kernels choose by their sizes.
Knows names, not kernels.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "TINYSERVE_GEMM_TABLE"


@dataclass(frozen=True)
class GemmTable:
    """For each weight [N, K]: ascending numbers of rows M, and the index of the configuration fastest at each."""

    shapes: Mapping[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]]

    def config(self, m: int, n: int, k: int) -> int:
        """That of the next larger M that was measured, or of the largest; -1 where the shape is not in the table."""
        measured = self.shapes.get((n, k))
        if measured is None:
            return -1
        rows, configs = measured
        return configs[min(bisect_left(rows, m), len(rows) - 1)]


def read_table(path: Path, gpu: str, configs: Mapping[str, int]) -> GemmTable:
    """The table in a file, for a GPU of that name whose configurations have these indices.

    Raises:
        ValueError: it is no such table, belongs to another GPU, or names a configuration that there is not.
    """
    try:
        table = json.loads(path.read_text())
        measured_on, shapes = table["gpu"]["name"], table["best"]
        parsed = {(int(e["n"]), int(e["k"])): sorted((int(m), str(name)) for m, name in e["rows"]) for e in shapes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of benchmarks/tune_gemm.py: {error!r}") from error
    if measured_on != gpu:
        raise ValueError(f"{path} was measured on {measured_on}, this GPU is {gpu}: run benchmarks/tune_gemm.py here")
    unknown = sorted({name for rows in parsed.values() for _, name in rows} - set(configs))
    if unknown:
        raise ValueError(f"{path} names configurations that this build or GPU does not have: {', '.join(unknown)}")
    return GemmTable(
        {
            shape: (tuple(m for m, _ in rows), tuple(configs[name] for _, name in rows))
            for shape, rows in parsed.items()
            if rows
        }
    )


def table_path() -> Path | None:
    """The file that the environment names."""
    value = os.environ.get(VARIABLE, "")
    return Path(value) if value else None
