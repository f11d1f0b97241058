"""Reading a Hugging Face folder's weights: shards, their index, and everything that can be broken about them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from awq.formats.checkpoint import CheckpointError
from awq.formats.json_file import read_json
from awq.formats.weights_folder import WeightsFolder

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).view(2, 3)}, tmp_path / A)
    save_file({"b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / B)
    write_index(tmp_path, {"a": A, "b": B})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(sharded: Path) -> None:
    folder = WeightsFolder(sharded)
    assert folder.names() == ["a", "b"]
    assert torch.equal(folder.tensor("a"), torch.arange(6.0).view(2, 3))
    assert folder.info("b").dtype == torch.bfloat16
    assert folder.info("b").shape == (4,)
    assert folder.file_of("b") == str(sharded / B)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": A, "b": "model-00003.safetensors"}, "model-00003.safetensors: the file is missing, though"),
        ({"a": A, "b": A}, f"index.json: tensor b is not in {A}"),
        ({"a": A, "b": B, "c": B}, f"index.json: tensor c is not in {B}"),
        ({"a": A, "b": "../x.safetensors"}, "b must name a .safetensors file in this folder, got '../x.safetensors'"),
        ({"a": A, "b": "pytorch_model.bin"}, "b must name a .safetensors file in this folder"),
        ({"a": A, "b": 3}, "b must name a .safetensors file in this folder, got 3"),
        ({}, "weight_map must be a non-empty object"),
        ([A, B], "weight_map must be a non-empty object"),
    ],
)
def test_refuses_an_index_that_does_not_fit(sharded: Path, weight_map: object, message: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=message):
        WeightsFolder(sharded)


def test_refuses_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, sharded / B)
    with pytest.raises(CheckpointError, match=f"{B}: tensor a is also in {A}"):
        WeightsFolder(sharded)


def test_refuses_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(1000.0), "b": torch.ones(10)}, path)
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    damaged = {
        "empty": b"",
        "cut in the length": data[:5],
        "cut in the header": data[: header_end - 10],
        "cut in the data": data[:-1],
        "surplus data": data + b"\0" * 8,
        "header is not JSON": data[:8] + b"x" * (header_end - 8) + data[header_end:],
        "header length out of range": b"\xff" * 8 + data[8:],
        "pointer of a large-file store": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for what, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file") as caught:
            WeightsFolder(tmp_path)
        assert f"it has {len(content)} bytes" in str(caught.value), what


def test_says_which_weights_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin is there, nor an"):
        WeightsFolder(tmp_path)
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found consolidated\.00\.pth$"):
        WeightsFolder(tmp_path)


def test_pickled_shards(tmp_path: Path) -> None:
    a, b = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    torch.save({"a": torch.nn.Parameter(torch.arange(6.0).view(2, 3))}, tmp_path / a)
    torch.save({"b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / b, _use_new_zipfile_serialization=False)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": a, "b": b}}))
    folder = WeightsFolder(tmp_path)
    assert folder.names() == ["a", "b"]
    assert torch.equal(folder.tensor("a"), torch.arange(6.0).view(2, 3))
    assert not folder.tensor("a").requires_grad
    assert str(folder.info("b")) == "bfloat16 [4]"
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert WeightsFolder(tmp_path).names() == ["a"]  # safetensors come first


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a complete file of tensors only"):
        WeightsFolder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b"", "not readable as JSON"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        read_json(path)
