"""pack-quantized folders against a decoder written from the format's description."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import TinyModel, assert_same, random_quantized

from awq.formats import compressed_tensors, open_checkpoint, write_compressed_tensors_folder
from awq.formats.checkpoint import CheckpointError
from awq.quantize import QuantConfig

MakeModel = Callable[..., TinyModel]


def signed_nibbles(words: NDArray[np.int32]) -> list[list[int]]:
    """Values -8 to 7 along the last axis, stored plus 8, lowest nibble first: int32 [R, C] -> [R][8C]."""
    return [[((word >> (4 * nibble)) & 0xF) - 8 for word in row for nibble in range(8)] for row in words.tolist()]


@pytest.mark.parametrize("zero_point", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("n", "k", "group_size"), [(8, 64, 32), (13, 192, 64), (16, 256, 128), (9, 96, -1)])
def test_encoding_is_the_described_one(n: int, k: int, group_size: int, zero_point: bool) -> None:
    weight = random_quantized(n, k, QuantConfig(4, group_size, zero_point))
    stored = compressed_tensors.encode(weight)
    assert set(stored) == {"weight_packed", "weight_scale", "weight_shape"} | (
        {"weight_zero_point"} if zero_point else set()
    )
    values = signed_nibbles(stored["weight_packed"].numpy())
    assert [[value + 8 for value in row] for row in values] == weight.codes.tolist()
    assert stored["weight_shape"].tolist() == [n, k]
    assert torch.equal(stored["weight_scale"], weight.scales)
    if zero_point:
        columns = signed_nibbles(stored["weight_zero_point"].t().numpy())  # packed along the out features
        assert [[value + 8 for value in column[:n]] for column in columns] == weight.zeros.t().tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zero_point", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_folder_read_back(
    make_model: MakeModel, tmp_path: Path, group_size: int, zero_point: bool, dtype: torch.dtype
) -> None:
    model = make_model(QuantConfig(4, group_size, zero_point), dtype)
    out = tmp_path / "out"
    state = {**model.state, "model.layers.0.mlp.gate.weight": torch.ones(4, 64, dtype=dtype)}
    write_compressed_tensors_folder(out, model.folder, state, model.quantized, model.config)
    checkpoint = open_checkpoint(out)
    assert checkpoint.quant == model.config
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)
    assert sorted(checkpoint.names()) == sorted(state)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["ignore"][0] == "lm_head"
    patterns = [entry.removeprefix("re:") for entry in config["ignore"][1:]]
    for module in ("model.layers.0.mlp.gate", "language_model.model.layers.0.mlp.gate", "model.embed_tokens"):
        assert any(re.match(pattern, module) for pattern in patterns)
    for module in (*model.quantized, "model.layers.0.mlp.gate_up_proj"):
        assert not any(re.match(pattern, module) for pattern in patterns)
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == (
        ("channel", None) if group_size == -1 else ("group", group_size)
    )
    assert weights["symmetric"] is not zero_point


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["config_groups"], {}, "config_groups must be a non-empty object"),
        (["config_groups", "group_0", "weights"], None, "group_0 must have an object `weights`, got None"),
        (["config_groups", "group_0", "weights", "num_bits"], 8, "group_0 num_bits must be 4, got 8"),
        (["config_groups", "group_0", "weights", "type"], "float", "type must be 'int', got 'float'"),
        (["config_groups", "group_0", "weights", "strategy"], "tensor", "strategy must be 'group' or 'channel'"),
        (["config_groups", "group_0", "weights", "group_size"], None, "group_size must be a positive integer"),
        (["config_groups", "group_0", "weights", "actorder"], "group", "actorder must be"),
        (["config_groups", "group_0", "input_activations"], {"num_bits": 8}, "input_activations must be None"),
        (["config_groups", "group_0", "format"], "nvfp4", "format must be 'pack-quantized', got 'nvfp4'"),
        (["transform_config"], {"R1": {}}, "transform_config is not supported"),
    ],
)
def test_refuses_other_schemes(
    make_model: MakeModel, tmp_path: Path, path: list[str], value: object, message: str
) -> None:
    model = make_model()
    out = tmp_path / "out"
    write_compressed_tensors_folder(out, model.folder, model.state, model.quantized, model.config)
    config = json.loads((out / "config.json").read_text())
    part = config["quantization_config"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(out)


def test_refuses_a_shape_that_is_not_the_stored_one(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    out = tmp_path / "out"
    write_compressed_tensors_folder(out, model.folder, model.state, model.quantized, model.config)
    tensors = load_file(out / "model.safetensors")
    name = next(iter(model.quantized))
    tensors[f"{name}.weight_shape"][1] += 1
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}: weight_shape says \[64, 129\], but weight_packed holds"):
        open_checkpoint(out).quantized(name)
