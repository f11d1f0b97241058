"""LLaVA whose language part has 4 bits, in every format and place: logits equal transformers' on the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_logits
import pytest
import tiny_llava
import torch
from torch import Tensor

from awq.formats import write_awq_folder, write_compressed_tensors_folder, write_llm_awq_v2
from awq.quantize import QuantConfig, QuantizedTensor, dequantize, quantize
from tinyserve.layers.linear import Linear, W4A8Linear, W4A16Linear
from tinyserve.models.llava import LlavaModel
from tinyserve.models.loader import load_model

BATCH = [[], [0], [1, 2, 0]]
CONFIG = QuantConfig(group_size=32)
FOLDERS = {"awq": write_awq_folder, "compressed-tensors": write_compressed_tensors_folder}
LAYOUTS = {"hf": tiny_llava.hf_name, "original": tiny_llava.original_name}


class Quantized:
    """A tiny model and its 4-bit twin: `reference` computes with the rounded weights, in fp32."""

    def __init__(self, folder: Path) -> None:
        self.reference = tiny_llava.make("llava_next", text={"intermediate_size": 128})
        self.reference.half().float()  # so that 16-bit checkpoints hold the very same values
        self.sources = {
            "hf": tiny_llava.save(self.reference, folder / "hf", torch.float16),
            "original": tiny_llava.save_original(self.reference, folder / "original", dtype=torch.float16),
        }
        self.modules: dict[str, QuantizedTensor] = {}
        self.plain: dict[str, Tensor] = {}
        state = self.reference.state_dict()
        for name, tensor in state.items():
            if "language_model.layers" in name and name.endswith("_proj.weight"):
                module = quantize(tensor.half(), CONFIG)
                self.modules[name.removesuffix(".weight")] = module
                tensor.copy_(dequantize(module))
            else:
                self.plain[name] = tensor.half()

    def contents(self, name: Callable[[str], str]) -> tuple[dict[str, Tensor], dict[str, QuantizedTensor]]:
        """Plain tensors and quantized modules under these names; those without a name are left out."""
        plain = {name(key): tensor for key, tensor in self.plain.items() if name(key)}
        return plain, {name(key): module for key, module in self.modules.items()}

    def check(self, model_path: Path, quant_path: Path | None = None) -> None:
        model = load_model(model_path, quant_path, dtype="float32")
        assert isinstance(model, LlavaModel)
        assert isinstance(model.layers[0].attention.qkv, W4A16Linear)
        assert all(isinstance(layer, Linear) for layer in model._images._projector.layers)
        llava_logits.assert_equal(
            llava_logits.logits(model, BATCH), llava_logits.expected(self.reference, model, BATCH), 1e-3
        )


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return Quantized(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format_", FOLDERS)
def test_a_quantized_folder(quantized: Quantized, tmp_path: Path, format_: str, layout: str) -> None:
    source = quantized.sources[layout]
    FOLDERS[format_](tmp_path / "folder", source, *quantized.contents(LAYOUTS[layout]), CONFIG)
    quantized.check(tmp_path / "folder")
    for model_path in quantized.sources.values():
        quantized.check(model_path, tmp_path / "folder")


def language_name(name: str) -> str:
    """As in a checkpoint of the language model alone; empty for what images need."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name if name.startswith("lm_head") else ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_language_model_alone(quantized: Quantized, tmp_path: Path, layout: str) -> None:
    source = tmp_path / "language"
    source.mkdir()
    plain, modules = quantized.contents(language_name)
    config = quantized.reference.config.text_config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    tiny_llava.write(source, plain, config | {"torch_dtype": "float16"})
    write_awq_folder(tmp_path / "folder", source, plain, modules, CONFIG)
    quantized.check(quantized.sources[layout], tmp_path / "folder")
    write_llm_awq_v2(tmp_path / "language.pt", plain, modules, CONFIG)
    quantized.check(quantized.sources[layout], tmp_path / "language.pt")


def test_a_whole_llm_awq_file(quantized: Quantized, tmp_path: Path) -> None:
    write_llm_awq_v2(tmp_path / "whole.pt", *quantized.contents(tiny_llava.original_name), CONFIG)
    quantized.check(quantized.sources["original"], tmp_path / "whole.pt")


def test_a_cpu_rounds_activations_of_the_language_model_only(quantized: Quantized, tmp_path: Path) -> None:
    write_awq_folder(tmp_path / "folder", quantized.sources["hf"], *quantized.contents(tiny_llava.hf_name), CONFIG)
    model = load_model(tmp_path / "folder", cpu_compute="int8")
    assert isinstance(model, LlavaModel)
    assert model.dtype == torch.float16
    assert isinstance(model.layers[0].attention.qkv, W4A8Linear)
    assert all(isinstance(layer, Linear) for layer in model._images._projector.layers)
    assert {parameter.dtype for parameter in model._images._tower.module.parameters()} == {torch.float16}


def test_another_model_is_refused(quantized: Quantized, tmp_path: Path) -> None:
    write_awq_folder(tmp_path / "folder", quantized.sources["hf"], *quantized.contents(tiny_llava.hf_name), CONFIG)
    for layout, source in quantized.sources.items():
        path = source / "config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        (config["text_config"] if layout == "hf" else config)["num_hidden_layers"] = 3
        other = tmp_path / layout
        other.mkdir()
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"is not a quantized .*: num_hidden_layers is 2 and 3"):
            load_model(other, tmp_path / "folder")
