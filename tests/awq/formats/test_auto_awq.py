"""AWQ gemm folders, written and read, against a decoder written from the format's description alone.

AutoAWQ's description: eight 4-bit values per int32, along the out channels; the nibbles of a word, lowest first, belong
to its channels 0, 2, 4, 6, 1, 3, 5, 7.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny_checkpoint import MODULES, TinyModel, assert_same, encode_v1, random_quantized

from awq.formats import auto_awq, llm_awq, open_checkpoint, write_awq_folder
from awq.formats.checkpoint import CheckpointError, dequantized_state
from awq.quantize import QuantConfig, dequantize

MakeModel = Callable[..., TinyModel]

NIBBLE_CHANNELS = [0, 2, 4, 6, 1, 3, 5, 7]


def decode(words: NDArray[np.int32]) -> list[list[int]]:
    """int32 [R, C] -> [R][8C], nibble by nibble."""
    rows = []
    for row in words.tolist():
        values = [-1] * (8 * len(row))
        for column, word in enumerate(row):
            for nibble, channel in enumerate(NIBBLE_CHANNELS):
                values[8 * column + channel] = ((word & 0xFFFFFFFF) >> (4 * nibble)) & 0xF
        rows.append(values)
    return rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "k", "group_size"), [(8, 32, 32), (24, 192, 64), (16, 256, 128), (40, 96, -1)])
def test_encoding_is_the_described_one(n: int, k: int, group_size: int, dtype: torch.dtype) -> None:
    weight = random_quantized(n, k, QuantConfig(4, group_size), dtype)
    stored = auto_awq.encode_gemm(weight)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "qweight": (k, n // 8),
        "qzeros": (k // weight.group, n // 8),
        "scales": (k // weight.group, n),
    }
    assert decode(stored["qweight"].numpy()) == weight.codes.t().tolist()
    assert decode(stored["qzeros"].numpy()) == weight.zeros.t().tolist()
    assert torch.equal(stored["scales"], weight.scales.t())
    assert_same(auto_awq.GEMM.decode(stored, weight.config), weight)


def test_word_written_out_by_hand() -> None:
    """Channels 0 to 7 with codes 1 to 8 make the word 0x86427531 read from the highest nibble down."""
    weight = random_quantized(8, 32, QuantConfig(4, 32))
    weight.codes[:, 0] = torch.arange(1, 9)
    assert int(auto_awq.encode_gemm(weight)["qweight"][0, 0]) & 0xFFFFFFFF == 0x86427531


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("zero_point", [True, False], ids=["asymmetric", "symmetric"])
def test_folder_holds_what_was_quantized(
    make_model: MakeModel, tmp_path: Path, group_size: int, zero_point: bool
) -> None:
    model = make_model(QuantConfig(4, group_size, zero_point))
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in model.quantized.items():
        assert decode(stored[f"{name}.qweight"]) == weight.codes.t().tolist()
        assert decode(stored[f"{name}.qzeros"]) == weight.zeros.t().tolist()
        np.testing.assert_array_equal(stored[f"{name}.scales"], weight.scales.t().numpy())
    for name, tensor in model.state.items():
        np.testing.assert_array_equal(stored[name], tensor.numpy())
    assert len(stored) == len(model.state) + 3 * len(model.quantized)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reading_back(make_model: MakeModel, tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype)
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.quant == model.config
    assert sorted(checkpoint.modules()) == sorted(model.quantized)
    for name, weight in model.quantized.items():
        assert checkpoint.is_quantized(name)
        assert_same(checkpoint.quantized(name), weight)
    assert sorted(checkpoint.names()) == sorted(model.state)
    for name, tensor in model.state.items():
        assert checkpoint.has(name)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert not checkpoint.is_quantized("model.norm")
    assert not checkpoint.has("model.layers.0.mlp.down_proj.qweight")
    # The same through the 16-bit model's path, as --model-path with --quant-path.
    assert open_checkpoint(model.folder, tmp_path / "out").modules() == checkpoint.modules()


def test_config_and_companions(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(QuantConfig(4, 64, zero_point=False), dtype=torch.bfloat16)
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,  # says that qzeros are stored
        "modules_to_not_convert": ["lm_head", "embed_tokens"],
    }
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["hidden_size"] == 64
    copied = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert copied == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "the tokenizer.json of the source"
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044, "others must be able to read the weights"


def test_shards_and_index(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config, shard_bytes=9000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    sizes = 0
    for name, file in index["weight_map"].items():
        sizes += load_file(tmp_path / "out" / file)[name].nbytes
    assert index["metadata"]["total_size"] == sizes
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)


def test_tied_output_layer_is_stored_once(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tied=True)
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "out").names()


def test_untied_matrices_of_equal_values_are_both_stored(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    state = {**model.state, "lm_head.weight": model.state["model.embed_tokens.weight"]}  # one memory
    write_awq_folder(tmp_path / "out", model.folder, state, model.quantized, model.config)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))


def test_state_is_cast_to_the_dtype_of_the_scales(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    state = {name: tensor.float() for name, tensor in model.state.items()}
    write_awq_folder(tmp_path / "out", model.folder, state, model.quantized, model.config)
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, tensor in model.state.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
    state["model.norm.weight"] = torch.full((64,), 1e6)
    with pytest.raises(ValueError, match=r"model\.norm\.weight: values up to 1e\+06 do not fit into torch\.float16"):
        write_awq_folder(tmp_path / "overflow", model.folder, state, model.quantized, model.config)


def test_dequantized_state_is_the_model_in_16_bits(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    state = dict(dequantized_state(open_checkpoint(tmp_path / "out"), torch.float32))
    assert set(state) == set(model.state) | {f"{name}.weight" for name in MODULES}
    for name, weight in model.quantized.items():
        assert torch.equal(state[f"{name}.weight"], dequantize(weight))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_refuses_to_replace_an_output(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    output = tmp_path / "out"
    output.mkdir()  # an empty folder is fine
    write_awq_folder(output, model.folder, model.state, model.quantized, model.config)
    with pytest.raises(ValueError, match="out already exists; remove it or name another output"):
        write_awq_folder(output, model.folder, model.state, model.quantized, model.config)
    (output / "stale").write_text("from before")
    write_awq_folder(output, model.folder, model.state, model.quantized, model.config, overwrite=True)
    assert not (output / "stale").exists()


@pytest.mark.parametrize(
    ("n", "k", "group_size", "message"),
    [
        (12, 64, 64, "lin: 12 out and 64 in features; the format needs multiples of 8 and 32"),
        (8, 48, -1, "lin: 8 out and 48 in features; the format needs multiples of 8 and 32"),
        (8, 64, 16, "4 bits in groups of 32, 64, 128 or -1 .* got 4 bits, group_size 16"),
    ],
)
def test_refuses_layers_it_cannot_store(
    make_model: MakeModel, tmp_path: Path, n: int, k: int, group_size: int, message: str
) -> None:
    model = make_model()
    config = QuantConfig(4, group_size)
    with pytest.raises(ValueError, match=message):
        write_awq_folder(tmp_path / "out", model.folder, {}, {"lin": random_quantized(n, k, config)}, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_refuses_contradictory_input(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    output, (name, weight) = tmp_path / "out", next(iter(model.quantized.items()))
    with pytest.raises(ValueError, match="no layer is quantized"):
        write_awq_folder(output, model.folder, model.state, {}, model.config)
    with pytest.raises(ValueError, match=f"{name}.weight is given both quantized and not"):
        write_awq_folder(output, model.folder, {f"{name}.weight": torch.zeros(1)}, model.quantized, model.config)
    with pytest.raises(ValueError, match="others with QuantConfig"):
        write_awq_folder(output, model.folder, model.state, model.quantized, QuantConfig(4, 32))
    full = {name: type(weight)(weight.codes, weight.scales.float(), weight.zeros, weight.config)}
    with pytest.raises(ValueError, match=f"{name}: scales must be float16 or bfloat16"):
        write_awq_folder(output, model.folder, model.state, full, model.config)


def test_refuses_names_that_the_format_cannot_tell_apart(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    state = {**model.state, "model.layers.0.mlp.down.weight": torch.ones(4, 64)}  # part of down_proj
    with pytest.raises(ValueError, match=r"mlp\.down stays in 16 bits, but its name is part of .*mlp\.down_proj"):
        write_awq_folder(tmp_path / "out", model.folder, state, model.quantized, model.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "marlin"}, "AWQ version 'marlin' is not supported; supported: gemm, gemv, gemv_fast"),
        ({"bits": 8}, "quantization_config bits must be 4, got 8"),
        ({"group_size": "64"}, "quantization_config group_size must be .* got '64'"),
        ({"zero_point": None}, "quantization_config zero_point must be true or false, got None"),
        ({"group_size": 16}, "group size 16 is not supported; supported are 32, 64, 128"),
        ({"group_size": 128}, r"qzeros must be int32 \[.*group size 128\), got int32"),
        ({"group_size": 48}, "group_size 48 does not divide the"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not supported; supported: awq"),
        ({"modules_to_not_convert": "q_proj"}, "modules_to_not_convert must be a list of names, got 'q_proj'"),
        ({"modules_to_not_convert": ["mlp"]}, "down_proj.qweight is there, but modules_to_not_convert lists 'mlp'"),
    ],
)
def test_refuses_other_quantization_configs(
    make_model: MakeModel, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)


def test_autoawq_field_names_and_nested_config(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    quantization = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    path.write_text(json.dumps(config | {"text_config": {"quantization_config": quantization}}))
    assert open_checkpoint(tmp_path / "out").quant == QuantConfig(4, 64)


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gemv_versions_are_read(make_model: MakeModel, version: str, group_size: int) -> None:
    model = make_model(QuantConfig(4, group_size))
    tensors = dict(model.state)
    for name, weight in model.quantized.items():
        stored = encode_v1(weight) if version == "gemv" else llm_awq.encode_v2(weight)
        # gemv_fast has llm-awq's v2 layout and calls the scaled zeros qzeros.
        tensors |= {f"{name}.{suffix.replace('scaled_zeros', 'qzeros')}": tensor for suffix, tensor in stored.items()}
    save_file(tensors, model.folder / "model.safetensors")
    path = model.folder / "config.json"
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": version}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    checkpoint = open_checkpoint(model.folder)
    assert checkpoint.quant == model.config
    for name, weight in model.quantized.items():
        assert_same(checkpoint.quantized(name), weight)
