"""benchmarks/tune_gemm.py on the smallest of shapes: every configuration is timed, and its table is read."""

import json
from pathlib import Path

import torch

from benchmarks import tune_gemm
from benchmarks.kernels import timing
from benchmarks.shapes import Shape
from tinyserve import ops
from tinyserve.gemm_table import read_table

CUDA_OP = "w4a16_gemm"


def test_the_table_is_read(device: str, tmp_path: Path) -> None:
    timer: timing.Timer = timing.CudaGraphTimer() if device == "cuda" else timing.LoopTimer()
    times = {Shape(64, 64): tune_gemm.time_configs(Shape(64, 64), [9], 32, torch.float16, timer, 2)}
    configs = ops.w4a16_gemm_configs(device)
    assert all(found.keys() == configs.keys() for found in times[Shape(64, 64)].values())
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"gpu": {"name": "this one"}, **tune_gemm.as_table(times)}))
    fastest = min(times[Shape(64, 64)][9].items(), key=lambda item: item[1])[0]
    assert read_table(path, "this one", configs).config(9, 64, 64) == configs[fastest]


def test_shapes_of_a_checkpoint(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    assert tune_gemm.architecture_of(tmp_path).linears()["qkv"] == (128, 64)
