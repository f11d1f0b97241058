"""GPTQ folders, made here nibble by nibble from the format's description, and read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import TinyModel, assert_same, make_tiny_model
from torch import Tensor

from awq.formats import open_checkpoint
from awq.formats.checkpoint import CheckpointError
from awq.quantize import QuantConfig, QuantizedTensor

Q = "model.layers.0.self_attn.q_proj"  # 64 out, 128 in features


def to_int32(words: list[list[int]]) -> Tensor:
    return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))


def encode(weight: QuantizedTensor, subtract: int) -> dict[str, Tensor]:
    """Codes packed along K, zeros along N; `subtract` from each zero."""
    n, k = weight.n, weight.k
    codes, zeros = weight.codes.tolist(), weight.zeros.tolist()
    qweight = [[sum(codes[c][8 * r + i] << (4 * i) for i in range(8)) for c in range(n)] for r in range(k // 8)]
    qzeros = [
        [sum((zeros[8 * c + i][g] - subtract) << (4 * i) for i in range(8)) % 2**32 for c in range(n // 8)]
        for g in range(k // weight.group)
    ]
    return {
        "qweight": to_int32(qweight),
        "qzeros": to_int32(qzeros),
        "scales": weight.scales.t().contiguous(),
        "g_idx": torch.arange(k, dtype=torch.int32) // weight.group,
    }


def write_folder(tmp_path: Path, quantization: dict[str, object], config: QuantConfig, subtract: int = 1) -> TinyModel:
    model = make_tiny_model(tmp_path / "model", config)
    tensors = dict(model.state)
    for name, weight in model.quantized.items():
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in encode(weight, subtract).items()}
    save_file(tensors, model.folder / "model.safetensors")
    path = model.folder / "config.json"
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": config.group_size, **quantization}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return model


@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize(
    ("quantization", "subtract", "zero_point"),
    [
        ({"sym": True, "desc_act": False}, 1, False),
        ({"sym": False, "checkpoint_format": "gptq"}, 1, True),
        ({"sym": False, "checkpoint_format": "gptq_v2"}, 0, True),
    ],
    ids=["symmetric", "asymmetric", "v2"],
)
def test_reading(
    tmp_path: Path, quantization: dict[str, object], subtract: int, zero_point: bool, group_size: int
) -> None:
    config = QuantConfig(4, group_size, zero_point)
    model = write_folder(tmp_path, quantization, config, subtract)
    checkpoint = open_checkpoint(model.folder)
    assert checkpoint.quant == config
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)
    assert sorted(checkpoint.names()) == sorted(model.state)


def test_g_idx_may_be_absent_but_not_sorted_by_activation(tmp_path: Path) -> None:
    model = write_folder(tmp_path, {"sym": True, "desc_act": True}, QuantConfig(4, 64, False))
    path = model.folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{Q}.g_idx"]
    save_file(tensors, path)
    assert_same(open_checkpoint(model.folder).quantized(Q), model.quantized[Q])
    tensors[f"{Q}.g_idx"] = torch.arange(128, dtype=torch.int32).flip(0) // 64
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"{Q}: g_idx sorts the in features by activation \(desc_act\)"):
        open_checkpoint(model.folder).quantized(Q)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 8}, "bits must be 4, got 8"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported; supported: gptq, gptq_v2"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic .* is not supported"),
        ({"group_size": 0}, "group_size must be a positive integer"),
    ],
)
def test_refuses_other_schemes(tmp_path: Path, change: dict[str, object], message: str) -> None:
    model = write_folder(tmp_path, change, QuantConfig(4, 64, False))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(model.folder)
