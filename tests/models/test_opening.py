"""What a folder is, by its files: logits of adapters equal peft's, bitsandbytes' equal transformers'; mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_adapter
import tiny_model
import torch
from llama_model import load_llama
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from awq import entry
from tinyserve.layers.bitsandbytes_linear import BitsAndBytesLinear, SideBySide
from tinyserve.layers.linear import Linear
from tinyserve.models.evaluation import logits
from tinyserve.models.opening import tokenizer_folder

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(3))
BITSANDBYTES = {
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
    "4bit": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "base", attention_bias=True)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("models") / "half", dtype=torch.float16, attention_bias=True)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter.save(base, tmp_path_factory.mktemp("models") / "adapter")


@torch.inference_mode()
def expected(model: Any) -> Tensor:
    """One text at a time, as ours: LLM.int8 computes a channel in 16 bits where any token of the batch is large."""
    return torch.cat([model(text.unsqueeze(0)).logits for text in IDS])


def test_an_adapter_over_its_base(base: Path, adapter: Path) -> None:
    model = load_llama(adapter, precision="W16A16", model_base=base)
    torch.testing.assert_close(logits(model, IDS), expected(tiny_adapter.merged(base, adapter)), rtol=1e-4, atol=1e-4)
    plain = load_llama(base, precision="W16A16")
    assert (logits(plain, IDS) - logits(model, IDS)).abs().max() > 0.1


def test_a_model_of_pickled_weights(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    torch.save(load_file(base / "model.safetensors"), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    model = load_llama(tmp_path / "model", precision="W16A16")
    assert torch.equal(logits(model, IDS), logits(load_llama(base, precision="W16A16"), IDS))


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_bitsandbytes_at_load(half: Path, load_in: Any) -> None:
    reference = AutoModelForCausalLM.from_pretrained(half, quantization_config=BITSANDBYTES[load_in], dtype="float16")
    model = load_llama(half, precision="W16A16", load_in=load_in)
    layer = model.layers[0]
    assert isinstance(layer.attention.qkv, SideBySide)
    assert isinstance(layer.mlp.down, BitsAndBytesLinear)
    assert isinstance(model.lm_head, Linear)
    bits = {"8bit": 8, "4bit": 4}[load_in]
    assert layer.mlp.gate_up.num_bytes == layer.mlp.gate_up.num_weights * bits // 8
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4)).half()
    attention = reference.model.layers[0].self_attn
    alone = torch.cat([getattr(attention, f"{name}_proj")(x) for name in "qkv"], -1)
    torch.testing.assert_close(layer.attention.qkv(x), alone, rtol=1e-3, atol=1e-3)
    error = (logits(model, IDS).float() - expected(reference).float()).norm() / expected(reference).float().norm()
    assert error < 2e-2  # fp16 rounds in other places, and LLM.int8 rounds the activations that come of it once more


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_what_bitsandbytes_has_stored(half: Path, tmp_path: Path, load_in: Any) -> None:
    reference = AutoModelForCausalLM.from_pretrained(half, quantization_config=BITSANDBYTES[load_in], dtype="float16")
    reference.save_pretrained(tmp_path / "stored")
    stored = load_llama(tmp_path / "stored", precision="W16A16")
    assert isinstance(stored.layers[0].attention.qkv, SideBySide)
    assert torch.equal(logits(stored, IDS), logits(load_llama(half, precision="W16A16", load_in=load_in), IDS))
    with pytest.raises(
        ValueError, match=f"--load-{load_in} quantizes 16-bit weights, but .*stored is quantized already"
    ):
        load_llama(tmp_path / "stored", precision="W16A16", load_in=load_in)
    with pytest.raises(ValueError, match="precision W4A16 needs 4-bit weights"):
        load_llama(tmp_path / "stored")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_an_adapter_is_merged_before_it_is_quantized(base: Path, adapter: Path, dtype: Any, load_in: Any) -> None:
    exact = expected(tiny_adapter.merged(base, adapter))
    model = load_llama(adapter, precision="W16A16", dtype=dtype, model_base=base, load_in=load_in)
    error = (logits(model, IDS).float() - exact).norm() / exact.norm()
    assert error < {"8bit": 0.1, "4bit": 0.3}[load_in]


def test_the_tokenizer_is_the_adapters_own_where_it_has_one(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert tokenizer_folder(base, None) == base
    assert tokenizer_folder(adapter, base) == base
    own = tmp_path / "adapter"
    shutil.copytree(adapter, own)
    tiny_model.save_tokenizer(own)
    assert tokenizer_folder(own, base) == own


@pytest.fixture(scope="module")
def quantized(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quantized"
    bits = ["--w_bit", "4", "--q_group_size", "32", "--q_backend", "real"]
    entry.main(["--model_path", str(half), *bits, "--dump_quant", str(folder)])
    return folder


def test_contradictions_name_the_flag(base: Path, half: Path, adapter: Path, quantized: Path, tmp_path: Path) -> None:
    def refused(message: str, model_path: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load_llama(model_path, **({"precision": "W16A16"} | options))

    refused(f"adapter is an adapter: give its base .{base}. as --model-base", adapter)
    refused(
        "--model-base .*base is for an adapter .* or a projector .*; --model-path .*base holds", base, model_base=base
    )
    refused("--model-base .*adapter must be a whole model, but is itself an adapter", adapter, model_base=adapter)
    refused(r"--model-base .*quantized is quantized \(awq\)", adapter, model_base=quantized)
    refused("--model-base: there is no folder .*nowhere", adapter, model_base=tmp_path / "nowhere")
    refused("--load-4bit quantizes 16-bit weights, but --model-path .*quantized is", quantized, load_in="4bit")
    for model, options in ((adapter, {}), (adapter, {"model_base": base}), (half, {"model_base": base})):
        refused(
            "--quant-path .*quantized belongs to a whole model: .*, without --model-base",
            model,
            precision="W4A16",
            quant_path=quantized,
            **options,
        )
    (tmp_path / "model").mkdir()
    torch.save({"model.mm_projector.weight": torch.zeros(2, 2)}, tmp_path / "model" / "mm_projector.bin")
    refused("model is a projector: give its language model as --model-base", tmp_path / "model")
    refused(r"model/config\.json: the file is missing", tmp_path / "model", model_base=base)


def test_damaged_bitsandbytes_weights_are_refused(half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    AutoModelForCausalLM.from_pretrained(
        half, quantization_config=BITSANDBYTES["4bit"], dtype="float16"
    ).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    with pytest.raises(ValueError, match=r"mlp\.gate_proj must be \[160, 64\] by config\.json, got \[128, 64\]"):
        load_llama(folder, precision="W16A16")
