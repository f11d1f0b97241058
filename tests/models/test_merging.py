"""LLaVA as an adapter or a projector over a language model: loaded directly, and merged into one folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_adapter
import tiny_llava
import tiny_model
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pictures import picture
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from tinyserve.models import merging
from tinyserve.models.evaluation import logits
from tinyserve.models.image_pixels import pixels
from tinyserve.models.llava import LlavaModel
from tinyserve.models.loader import load_model

IDS = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(3))


def split(whole: Path, base: Path, wanted: str) -> dict[str, Tensor]:
    """Takes a folder of LLaVA's layout apart: the language model goes to `base`, the images' tensors come back."""
    tensors = load_file(whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())
    images = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name or "vision_tower" in name}
    text = {name: value for name, value in config.items() if not name.startswith("mm_") and name != "vision_config"}
    base.mkdir()
    text |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    tiny_llava.write(base, {name: tensor for name, tensor in tensors.items() if name not in images}, text)
    return {name: tensor for name, tensor in images.items() if wanted in name}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LLaVA with its tower in a folder of its own, whole and as LLaVA's two kinds of training leave it.

    The config of an adapter or a projector names the language model's architecture, as LLaVA's code saves it.
    """
    root = tmp_path_factory.mktemp("llava")
    found = {name: root / name for name in ("whole", "base", "adapter", "projector", "tuned")}
    tiny_llava.save_original(tiny_llava.make(), found["whole"], tower="tower")
    projector = split(found["whole"], found["base"], "mm_projector")
    config = json.loads((found["whole"] / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}

    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(found["base"]), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(found["adapter"]))
    wrapped = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    torch.save(wrapped, found["adapter"] / "non_lora_trainables.bin")
    found["projector"].mkdir()
    torch.save({name: tensor.half() for name, tensor in projector.items()}, found["projector"] / "mm_projector.bin")
    for name in ("adapter", "projector"):
        (found[name] / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
        shutil.copytree(found["whole"] / "tower", found[name] / "tower")

    # What the adapter should become: the whole folder with peft's own merge as its language model.
    merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found["base"]), found["adapter"])
    shutil.copytree(found["whole"], found["tuned"])
    tensors = load_file(found["whole"] / "model.safetensors")
    tensors |= {name: tensor.contiguous() for name, tensor in merged.merge_and_unload().state_dict().items()}
    save_file(tensors, found["tuned"] / "model.safetensors", metadata={"format": "pt"})
    return found


def answers(model: Any) -> tuple[Tensor, Tensor]:
    """Logits of texts, and the embeddings of a picture."""
    assert isinstance(model, LlavaModel)
    image = picture("RGB", 37, 100)
    return logits(model, IDS), model.encode_images([(pixels(image, model.image_spec), image.size)])[0]


def assert_same(model: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for got, wanted in zip(answers(model), answers(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def test_an_adapter_over_a_language_model(parts: dict[str, Path]) -> None:
    expected = load_model(parts["tuned"], precision="W16A16")
    assert_same(load_model(parts["adapter"], precision="W16A16", model_base=parts["base"]), expected)
    whole = load_model(parts["whole"], precision="W16A16")
    assert (logits(whole, IDS) - logits(expected, IDS)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_a_projector_over_a_language_model(parts: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "projector"
    shutil.copytree(parts["projector"], folder)
    tensors = torch.load(folder / "mm_projector.bin", weights_only=True)
    (folder / "mm_projector.bin").unlink()
    renamed = {key.replace("model.mm_projector.", name): tensor for key, tensor in tensors.items()}
    save_file(renamed, folder / "mm_projector.safetensors")
    expected = load_model(parts["whole"], precision="W16A16")
    assert_same(load_model(folder, precision="W16A16", model_base=parts["base"]), expected, tolerance=5e-3)  # fp16


@pytest.mark.parametrize("bundled", [False, True])
def test_merged_folders_stand_alone(parts: dict[str, Path], tmp_path: Path, bundled: bool) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(parts["adapter"], adapter)
    if bundled:  # as LLaVA saves a tower that it has trained
        tensors = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
        tower = load_file(adapter / "tower" / "model.safetensors")
        names = {name: f"base_model.model.model.vision_tower.vision_tower.{name}" for name in tower}
        torch.save(tensors | {names[n]: tensor for n, tensor in tower.items()}, adapter / "non_lora_trainables.bin")
    flags = ["--model-path", str(adapter), "--model-base", str(parts["base"])]
    assert merging.main([*flags, str(output)]) == 0
    shutil.rmtree(adapter)
    assert_same(load_model(output, precision="W16A16"), load_model(parts["tuned"], precision="W16A16"))
    written = {path.name for path in output.iterdir()}
    assert written >= {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"}
    assert not written & {"adapter_config.json", "non_lora_trainables.bin"}
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert "quantization_config" not in config


def test_merging_a_plain_adapter_keeps_the_type_of_the_base(tmp_path: Path) -> None:
    base = tiny_model.save(tmp_path / "base", dtype=torch.bfloat16)
    adapter = tiny_adapter.save(base, tmp_path / "adapter")
    merging.merge(adapter, base, tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = tiny_adapter.merged(base, adapter)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name).bfloat16().float(), rtol=0, atol=0)


def test_an_adapter_of_transformers_own_llava(tmp_path: Path) -> None:
    """Its layers have other names in memory, where peft sees them, than in the checkpoint."""
    base = tiny_llava.save(tiny_llava.make(), tmp_path / "base")
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    model = get_peft_model(LlavaForConditionalGeneration.from_pretrained(base), settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "adapter"))
    merging.merge(tmp_path / "adapter", base, tmp_path / "merged")
    merged = model.merge_and_unload()
    with torch.inference_mode():
        expected = merged(IDS).logits
    torch.testing.assert_close(
        logits(load_model(tmp_path / "merged", precision="W16A16"), IDS), expected, rtol=1e-4, atol=1e-4
    )


def test_mistakes_are_one_line(parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, base, words in (
        (parts["whole"], parts["base"], "holds neither"),
        (parts["adapter"], parts["adapter"], "is itself an adapter"),
        (parts["adapter"], tmp_path / "nowhere", "no folder"),
    ):
        flags = ["--model-path", str(model), "--model-base", str(base), str(tmp_path / "merged")]
        assert merging.main(flags) == 1
        error = capsys.readouterr().err
        assert error.startswith("tinyserve merge: error: ")
        assert words in error
        assert not (tmp_path / "merged").exists()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "file").write_text("kept")
    flags = ["--model-path", str(parts["adapter"]), "--model-base", str(parts["base"]), str(tmp_path / "merged")]
    assert merging.main(flags) == 1
    assert "already exists" in capsys.readouterr().err
