"""LLaVA in bitsandbytes' 8 and 4 bits: quantized at load, where only the language model is, and as it was stored."""

from pathlib import Path
from typing import Any

import llava_logits
import pytest
import tiny_llava
import torch
from llama_model import load_llama
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from tinyserve.layers.bitsandbytes_linear import BitsAndBytesLinear
from tinyserve.models.llava import LlavaModel

BATCH = [[0], [], [1, 2]]  # images of each prompt
CONFIGS = {
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llava.make()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    return tiny_llava.save(model, tmp_path_factory.mktemp("models") / "llava", dtype=torch.float16)


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_only_the_language_model_is_quantized_at_load(folder: Path, load_in: Any) -> None:
    whole = load_llama(folder, precision="W16A16")
    model = load_llama(folder, precision="W16A16", load_in=load_in)
    assert isinstance(model, LlavaModel)
    assert isinstance(model.layers[0].mlp.down, BitsAndBytesLinear)
    image = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode_images([(image, (28, 28))])[0], whole.encode_images([(image, (28, 28))])[0])
    got, expected = (torch.cat(llava_logits.logits(one, BATCH)).float() for one in (model, whole))
    assert 0 < (got - expected).norm() / expected.norm() < {"8bit": 0.05, "4bit": 0.5}[load_in]


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_what_transformers_has_stored(folder: Path, tmp_path: Path, load_in: str) -> None:
    """It quantizes tower and projector as well; ours computes the tower with the weights that the codes stand for."""
    options: dict[str, Any] = {"quantization_config": CONFIGS[load_in], "dtype": torch.float16}
    reference = LlavaForConditionalGeneration.from_pretrained(folder, **options)
    reference.save_pretrained(tmp_path / "stored")
    tiny_llava.processor(reference).save_pretrained(tmp_path / "stored")
    model = load_llama(tmp_path / "stored", precision="W16A16")
    got = torch.cat(llava_logits.logits(model, BATCH)).float()
    expected = torch.cat(llava_logits.expected(reference.dequantize(torch.float32).float(), model, BATCH))
    assert (got - expected).norm() / expected.norm() < {"8bit": 0.05, "4bit": 0.01}[load_in]
