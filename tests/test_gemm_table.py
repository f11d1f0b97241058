"""The table of measured GEMM configurations: what it chooses, and what it refuses."""

import json
from pathlib import Path

import pytest

from tinyserve.gemm_table import read_table

CONFIGS = {"small": 3, "large": 5}


def write(path: Path, gpu: str = "GPU A", name: str = "large") -> Path:
    best = [{"n": 128, "k": 64, "rows": [[64, name], [16, "small"]]}]
    path.write_text(json.dumps({"gpu": {"name": gpu}, "best": best}))
    return path


def test_chooses_the_next_larger_measured_number_of_rows(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "table.json"), "GPU A", CONFIGS)
    assert [table.config(m, 128, 64) for m in (9, 16, 17, 64, 65, 4096)] == [3, 3, 5, 5, 5, 5]
    assert table.config(16, 64, 128) == -1


def test_a_table_of_another_gpu_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was measured on GPU B, this GPU is GPU A"):
        read_table(write(tmp_path / "table.json", gpu="GPU B"), "GPU A", CONFIGS)


def test_a_configuration_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not have: gone"):
        read_table(write(tmp_path / "table.json", name="gone"), "GPU A", CONFIGS)


@pytest.mark.parametrize("text", ["", "[]", '{"gpu": 1}', '{"gpu": {"name": "GPU A"}, "best": [{"n": 1}]}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is no table of benchmarks/tune_gemm\.py"):
        read_table(path, "GPU A", CONFIGS)
    with pytest.raises(ValueError, match="is no table"):
        read_table(tmp_path / "missing.json", "GPU A", CONFIGS)
