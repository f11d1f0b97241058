"""Conversion between formats: from every format that is read to every one that is written, the same weights."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from disk_limit import files_of_at_most
from safetensors.torch import load_file, save_file
from tiny_checkpoint import TinyModel, assert_same, encode_v1, make_tiny_model
from torch import Tensor

from awq import entry
from awq.convert import convert_checkpoint
from awq.flags import FORMATS
from awq.formats import WRITERS, open_checkpoint, write_awq_folder, write_compressed_tensors_folder, write_llm_awq_v2
from awq.formats.llm_awq import encode_v2
from awq.formats.nibbles import pack_columns, pack_rows
from awq.quantize import QuantConfig, QuantizedTensor


def write_other(model: TinyModel, output: Path, quantization: object, encode: Callable[..., dict[str, Tensor]]) -> None:
    """A folder in a format that is only read."""
    shutil.copytree(model.folder, output)
    tensors = dict(model.state)
    for name, weight in model.quantized.items():
        tensors |= {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in encode(weight).items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    path = output / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))


def encode_gptq(weight: QuantizedTensor) -> dict[str, Tensor]:
    """checkpoint_format gptq_v2: zeros as they are."""
    return {
        "qweight": pack_rows(weight.codes.t().contiguous()),
        "qzeros": pack_columns(weight.zeros.t().contiguous()),
        "scales": weight.scales.t(),
    }


def encode_gemv_fast(weight: QuantizedTensor) -> dict[str, Tensor]:
    return {name.replace("scaled_zeros", "qzeros"): tensor for name, tensor in encode_v2(weight).items()}


def write_v1(model: TinyModel, output: Path) -> None:
    stored = {f"{name}.{k}": v for name, weight in model.quantized.items() for k, v in encode_v1(weight).items()}
    torch.save({**model.state, **stored}, output)


def write_source(kind: str, model: TinyModel, output: Path) -> None:
    """The model in one of the readable formats."""
    group_size = model.config.group_size
    awq = {"quant_method": "awq", "bits": 4, "group_size": group_size}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "checkpoint_format": "gptq_v2"}
    of_folder = (model.folder, model.state, model.quantized, model.config)
    writers: dict[str, Callable[[], object]] = {
        "awq gemm": partial(write_awq_folder, output, *of_folder),
        "awq gemv": partial(write_other, model, output, awq | {"version": "gemv"}, encode_v1),
        "awq gemv_fast": partial(write_other, model, output, awq | {"version": "gemv_fast"}, encode_gemv_fast),
        "compressed-tensors": partial(write_compressed_tensors_folder, output, *of_folder),
        "gptq": partial(write_other, model, output, gptq, encode_gptq),
        "v2.pt": partial(write_llm_awq_v2, output, *of_folder[1:]),
        "v1.pt": partial(write_v1, model, output),
    }
    writers[kind]()


SOURCES = ["awq gemm", "awq gemv", "awq gemv_fast", "compressed-tensors", "gptq", "v2.pt", "v1.pt"]


def test_the_flags_name_every_writer() -> None:
    assert list(FORMATS) == list(WRITERS)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("kind", SOURCES)
def test_from_every_format_to_every_format(kind: str, target: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "16-bit", QuantConfig(4, 64))
    source = tmp_path / ("in.pt" if kind.endswith("pt") else "in")
    output = tmp_path / ("out.pt" if target == "llm-awq-v2" else "out")
    write_source(kind, model, source)
    flags = ["--model_path", str(model.folder)] if source.is_file() else []
    entry.main(["convert", str(source), str(output), "--format", target, *flags])
    converted = open_checkpoint(model.folder, output)
    assert converted.quant == model.config
    for name, weight in model.quantized.items():
        assert_same(converted.quantized(name), weight)
    assert sorted(converted.names()) == sorted(model.state)
    for name, tensor in model.state.items():
        assert torch.equal(converted.tensor(name), tensor)
    if output.is_dir():
        assert (output / "tokenizer.json").read_text() == "the tokenizer.json of the source"


def test_shards_of_the_source_are_read_and_the_output_is_one_file(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "16-bit", tied=True)
    of_folder = (model.folder, model.state, model.quantized, model.config)
    write_awq_folder(tmp_path / "awq", *of_folder, shard_bytes=9000)
    write_compressed_tensors_folder(tmp_path / "expected", *of_folder)
    assert len(list((tmp_path / "awq").glob("*.safetensors"))) > 2
    convert_checkpoint(tmp_path / "awq", tmp_path / "ct", "compressed-tensors")
    expected, actual = (load_file(tmp_path / folder / "model.safetensors") for folder in ("expected", "ct"))
    assert sorted(actual) == sorted(expected)
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_symmetric_all_the_way_round(group_size: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """AWQ's formats store zeros of 8, compressed-tensors none; what comes back is what went in."""
    model = make_tiny_model(tmp_path / "16-bit", QuantConfig(4, group_size, zero_point=False), dtype)
    write_awq_folder(tmp_path / "awq", model.folder, model.state, model.quantized, model.config)
    convert_checkpoint(tmp_path / "awq", tmp_path / "v2.pt", "llm-awq-v2")
    convert_checkpoint(tmp_path / "v2.pt", tmp_path / "ct", "compressed-tensors", model.folder)
    tensors = load_file(tmp_path / "ct" / "model.safetensors")
    assert not any(name.endswith("weight_zero_point") for name in tensors)
    convert_checkpoint(tmp_path / "ct", tmp_path / "again", "awq-gemm")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "awq" / file).read_bytes()


def test_another_dtype(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "16-bit", dtype=torch.bfloat16, tied=True)
    write_awq_folder(tmp_path / "awq", model.folder, model.state, model.quantized, model.config)
    entry.main(["convert", str(tmp_path / "awq"), str(tmp_path / "half"), "--dtype", "float16"])
    converted = open_checkpoint(tmp_path / "half")
    assert converted.config["torch_dtype"] == "float16"
    assert "lm_head.weight" not in converted.names()
    assert {converted.tensor(name).dtype for name in converted.names()} == {torch.float16}
    for name, weight in model.quantized.items():
        assert torch.equal(converted.quantized(name).scales, weight.scales.half())


def test_a_nested_quantization_config_moves_to_the_top(tmp_path: Path) -> None:
    """Engines look for it there alone."""
    model = make_tiny_model(tmp_path / "16-bit")
    write_awq_folder(tmp_path / "awq", model.folder, model.state, model.quantized, model.config)
    path = tmp_path / "awq" / "config.json"
    config = json.loads(path.read_text())
    nested = {"quantization_config": config.pop("quantization_config")}
    path.write_text(json.dumps({**config, "text_config": nested}))
    convert_checkpoint(tmp_path / "awq", tmp_path / "ct", "compressed-tensors")
    converted = json.loads((tmp_path / "ct" / "config.json").read_text())
    assert converted["quantization_config"]["quant_method"] == "compressed-tensors"
    assert converted["text_config"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in", "out"], 1, "is not quantized; --w_bit with --dump_quant quantizes a 16-bit model"),
        (["none", "out"], 1, "model folder none does not exist"),
        (["in.pt", "out"], 1, "in.pt holds no config.json and no tokenizer: name a model folder with --model_path"),
        (["in", "in"], 1, "in already exists; remove it or name another output"),
        (["in", "out", "--format", "gguf"], 2, "argument --format: invalid choice: 'gguf'"),
        (["in", "out.pt", "--format", "awq-gemm"], 2, "awq-gemm makes a folder, which must not be named X.pt, got out"),
        (["in", "out", "--format", "llm-awq-v2"], 2, "llm-awq-v2 makes one file, which must be named X.pt, got out"),
        (["in"], 2, "the following arguments are required: OUT"),
    ],
)
def test_mistakes(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_tiny_model(tmp_path / "in")
    write_llm_awq_v2(tmp_path / "in.pt", model.state, model.quantized, model.config)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        entry.main(["convert", *arguments])
    assert caught.value.code == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "in.pt"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("missing scales", "down_proj.qweight is there, but model.layers.0.mlp.down_proj.scales is missing"),
        ("surplus zeros", r"up_proj.qzeros has no model.layers.0.mlp.up_proj.qweight beside it"),
        ("fp32 scales", "has scales of torch.float32, which few engines read: add --dtype float16 or bfloat16"),
    ],
)
def test_checkpoints_that_do_not_fit(broken: str, message: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "16-bit")
    write_awq_folder(tmp_path / "awq", model.folder, model.state, model.quantized, model.config)
    tensors = load_file(tmp_path / "awq" / "model.safetensors")
    if broken == "missing scales":
        del tensors["model.layers.0.mlp.down_proj.scales"]
    elif broken == "surplus zeros":
        tensors["model.layers.0.mlp.up_proj.qzeros"] = torch.zeros(1, 1, dtype=torch.int32)
    else:
        tensors = {name: t.float() if name.endswith("scales") else t for name, t in tensors.items()}
    save_file(tensors, tmp_path / "awq" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "awq", tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", FORMATS)
def test_a_full_disk_leaves_nothing(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model(tmp_path / "16-bit")
    write_awq_folder(tmp_path / "awq", model.folder, model.state, model.quantized, model.config)
    output = tmp_path / ("out.pt" if target == "llm-awq-v2" else "out")
    with files_of_at_most(18000), pytest.raises(SystemExit) as caught:
        entry.main(["convert", str(tmp_path / "awq"), str(output), "--format", target])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "error: " in said
    assert "File too large" in said or "is the disk full?" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["16-bit", "awq"]
