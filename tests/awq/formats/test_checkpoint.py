"""What a checkpoint must consist of: each thing missing, surplus or misshapen is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import TinyModel
from torch import Tensor

from awq.formats import open_checkpoint, write_awq_folder
from awq.formats.checkpoint import CheckpointError, dequantized_state

MakeModel = Callable[..., TinyModel]
Q = "model.layers.0.self_attn.q_proj"  # 64 out, 128 in features, groups of 64


@pytest.fixture
def quantized_folder(make_model: MakeModel, tmp_path: Path) -> Path:
    model = make_model()
    write_awq_folder(tmp_path / "out", model.folder, model.state, model.quantized, model.config)
    return tmp_path / "out"


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.scales"), f"{Q}.qweight is there, but {Q}.scales is missing"),
        (lambda t: t.pop(f"{Q}.qzeros"), f"{Q}.qweight is there, but {Q}.qzeros is missing"),
        (lambda t: t.pop(f"{Q}.qweight"), f"{Q}.(scales|qzeros) has no {Q}.qweight beside it"),
        (lambda t: t.update({f"{Q}.weight": torch.zeros(64, 128)}), f"{Q} is stored twice, as {Q}.qweight and as"),
        (
            lambda t: t.update({f"{Q}.scales": torch.zeros(2, 32, dtype=torch.float16)}),
            rf"{Q}.scales must be float16 or bfloat16 or float32 \[2, 64\] .*, got float16 \[2, 32\]",
        ),
        (
            lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"].long()}),
            rf"{Q}.qzeros must be int32 \[2, 8\] \(out 64, in 128, group size 64\), got int64 \[2, 8\]",
        ),
        (
            lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][:100].clone()}),
            f"{Q}.qweight with shape .* group_size 64 does not divide the 100 in features",
        ),
        (lambda t: t.update({f"{Q}.qweight": torch.zeros(8)}), rf"{Q}.qweight must be a matrix, got shape \[8\]"),
    ],
)
def test_refuses_incomplete_modules(
    quantized_folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_tensors(quantized_folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(quantized_folder)
    assert "model.safetensors" in str(caught.value)


def test_refuses_scales_that_are_not_numbers(quantized_folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.scales"][1, 3] = float("nan")

    change_tensors(quantized_folder, spoil)
    checkpoint = open_checkpoint(quantized_folder)
    with pytest.raises(CheckpointError, match=f"model.safetensors: {Q}: scales hold NaN or infinity"):
        checkpoint.quantized(Q)


def test_names_what_is_not_there(quantized_folder: Path) -> None:
    checkpoint = open_checkpoint(quantized_folder)
    with pytest.raises(CheckpointError, match=r"out: tensor model\.norm\.bias is not in it"):
        checkpoint.tensor("model.norm.bias")
    with pytest.raises(CheckpointError, match=f"tensor {Q}.weight is part of a quantized module"):
        checkpoint.tensor(f"{Q}.weight")
    with pytest.raises(CheckpointError, match=r"module model\.norm is not quantized in it"):
        checkpoint.quantized("model.norm")


def test_declared_but_not_quantized(quantized_folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("qweight", "qzeros", "scales"))]:
            del tensors[name]

    change_tensors(quantized_folder, drop)
    with pytest.raises(CheckpointError, match=r"config\.json: declares AWQ gemm, but no tensor ends in \.qweight"):
        open_checkpoint(quantized_folder)


def test_16_bit_folder(make_model: MakeModel) -> None:
    model = make_model()
    checkpoint = open_checkpoint(model.folder)
    assert checkpoint.quant is None
    assert checkpoint.modules() == []
    assert not checkpoint.is_quantized(Q)
    assert checkpoint.has(f"{Q}.weight")
    state = dict(dequantized_state(checkpoint))
    assert list(state) == checkpoint.names()
    assert state["model.norm.weight"].dtype == torch.float16


def test_paths_that_are_not_checkpoints(make_model: MakeModel, quantized_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases: list[tuple[Path, Path | None, str]] = [
        (tmp_path / "none", None, "model folder .*none does not exist"),
        (quantized_folder / "config.json", None, "model folder .*config.json is not a folder"),
        (tmp_path, None, r"config\.json: the file is missing"),
        (source, tmp_path / "none.pt", "quantized checkpoint .*none.pt does not exist"),
        (source, source / "tokenizer.json", "is a Hugging Face folder or a .pt file of llm-awq"),
        (source, source, r"source/config\.json: no quantization_config, so it is not a quantized model"),
    ]
    for model_path, quant_path, message in cases:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(model_path, quant_path)


def test_refuses_another_model(quantized_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {"hidden_size": 4096}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"out is not a quantized .*source: hidden_size is 64 and 4096"):
        open_checkpoint(tmp_path / "source", quantized_folder)
