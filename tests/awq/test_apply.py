"""Folding scales must not change a model: this is what catches a wrong mapping."""

from pathlib import Path

import pytest
import tiny_model
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from awq.apply import Adjustment, QuantizedModel
from awq.mappings import ARCHITECTURES
from awq.model import open_model
from awq.quantize import QuantConfig, dequantize
from awq.results import ClipItem, ScaleItem, SearchResults

MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}


def test_every_architecture_is_tested() -> None:
    assert set(MODEL_TYPES) == set(ARCHITECTURES)


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("architecture", sorted(MODEL_TYPES))
def test_folding_leaves_the_outputs_unchanged(architecture: str, kv_heads: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "vocab_size": 300,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(MODEL_TYPES[architecture], **sizes)).eval()
    for parameter in model.parameters():  # biases start as zeros, norms as ones: random values show more
        torch.nn.init.normal_(parameter, std=0.2)
    mapping = ARCHITECTURES[architecture]
    items = []
    for index in range(2):
        block = mapping.block(index)
        for group in mapping.groups:
            linears = [model.get_submodule(f"{block}.{layer}") for layer in group.layers]
            if (
                group.through_value
                and model.get_submodule(f"{block}.{group.prev}").weight.shape != linears[0].weight.shape
            ):
                continue
            t = torch.rand(linears[0].in_features) * 4 + 0.1
            items.append(ScaleItem(f"{block}.{group.prev}", tuple(f"{block}.{layer}" for layer in group.layers), t))
    assert len(items) == 2 * (4 if kv_heads == 4 else 3)
    tokens = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        before = model(tokens).logits
        adjust = Adjustment(SearchResults(items))
        for name, parameter in model.named_parameters():
            parameter.copy_(adjust(name, parameter.data))
        after = model(tokens).logits
    assert float((after - before).abs().max() / before.abs().max()) < 1e-4


def test_quantized_model_rounds_folded_and_clipped_weights(tmp_path: Path) -> None:
    model = open_model(tiny_model.save(tmp_path / "tiny"))
    up, down, norm = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "post_attention_layernorm"))
    t = torch.rand(64) + 0.5
    bound = torch.tensor([-0.05, 0.1]).expand(128, 2, 2)
    results = SearchResults([ScaleItem(norm, ("model.layers.0.mlp.gate_proj", up), t)], [ClipItem(up, bound)])
    quantized = QuantizedModel(model, QuantConfig(4, 32), results)
    weight = model.checkpoint.tensor(f"{up}.weight").float()
    error = dequantize(quantized.quantized[up]) - (weight * t).clamp(-0.05, 0.1)
    assert float(error.abs().max()) <= 0.15 / 15 / 2 * 1.01  # half a step of the clipped range
    stored = model.checkpoint.tensor(f"{norm}.weight").float()
    torch.testing.assert_close(quantized.state[f"{norm}.weight"].float(), stored / t, rtol=1e-3, atol=1e-3)
    assert quantized.quantized[down].scales.dtype == torch.float16
    assert f"{up}.weight" not in quantized.state
    assert dict(quantized.weights()).keys() == set(model.checkpoint.names())
