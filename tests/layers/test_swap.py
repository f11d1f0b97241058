"""Models of transformers with our modules in place of theirs: generate says what it said before."""

from pathlib import Path
from typing import Any

import pytest
import tiny_architectures
import torch
from torch import Tensor, nn

from awq.formats import open_checkpoint, write_awq_folder
from awq.quantize import QuantConfig, QuantizedTensor, dequantize, quantize
from tinyserve.layers import swap
from tinyserve.layers.generating_attention import GeneratingAttention
from tinyserve.layers.modules import FusedMLP, QuantLinear, QuantNorm
from tinyserve.layers.norm_kinds import read_norm

ATTENTION = ["llama", "llama, all heads", "mistral", "qwen2", "gemma2", "phi3"]
OTHERS = ["opt", "neox", "qwen3"]  # attention of other kinds
CONFIG = QuantConfig(group_size=32)


def quantized_linears(model: nn.Module) -> dict[str, QuantizedTensor]:
    """All but the output layer, rounded; the model gets the weights that the codes stand for."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features != 320:
            weights[name] = quantize(module.weight.detach(), CONFIG, torch.float16)
            module.weight.data = dequantize(weights[name], torch.float32)
    return weights


def generated(model: Any, batch: int = 2, **settings: Any) -> Tensor:
    prompts = torch.randint(0, 300, (batch, 21), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        tokens: Tensor = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=40,
            eos_token_id=None,
            pad_token_id=0,
            **{"do_sample": False, **settings},
        )
    return tokens


@pytest.mark.parametrize("name", [*ATTENTION, *OTHERS])
def test_generate_says_what_the_dequantized_model_says(name: str, tmp_path: Path) -> None:
    model = tiny_architectures.save(name, tmp_path)
    weights = quantized_linears(model)
    expected = generated(model)
    num_norms = sum("norm" in type(module).__name__.lower() for module in model.modules())
    assert swap.make_quant_linear(model, weights) == list(weights)
    assert len(swap.make_quant_norm(model)) == num_norms
    assert torch.equal(generated(model), expected)
    if name in ATTENTION:
        swap.make_quant_attn(model, "cpu")
        swap.make_fused_mlp(model)
        kinds = [GeneratingAttention, FusedMLP]
        assert [sum(isinstance(module, kind) for module in model.modules()) for kind in kinds] == [2, 2]
        assert torch.equal(generated(model), expected)
        assert torch.equal(generated(model, num_beams=3), generated(tiny_beams(name, weights, tmp_path), num_beams=3))


def tiny_beams(name: str, weights: dict[str, QuantizedTensor], folder: Path) -> Any:
    """The dequantized model again."""
    model = tiny_architectures.save(name, folder / "again")
    for module, weight in weights.items():
        model.get_submodule(module).weight.data = dequantize(weight, torch.float32)
    return model


def test_linears_from_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_architectures.save("llama", tmp_path / "source")
    weights = quantized_linears(model)
    expected = generated(model)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name.removesuffix(".weight") not in weights
    }
    write_awq_folder(tmp_path / "awq", tmp_path / "source", tensors, weights, CONFIG)
    swap.make_quant_linear(model, open_checkpoint(tmp_path / "awq"))
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == len(weights)
    assert torch.equal(generated(model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_architectures.save("gemma2", tmp_path, std=0.1).to(dtype)
    text = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = model(text).logits.float()
        for change in (swap.make_quant_attn, swap.make_quant_norm, swap.make_fused_mlp):
            assert change(model)
        got = model(text).logits
    assert got.dtype == dtype
    assert float((got.float() - expected).norm() / expected.norm()) < (0.01 if dtype == torch.float16 else 0.06)


def test_a_conversation_goes_on_in_its_cache(tmp_path: Path) -> None:
    model = tiny_architectures.save("llama", tmp_path)
    text = torch.randint(0, 300, (1, 90), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = model(text).logits
        swap.make_quant_attn(model)
        first = model(text[:, :33], use_cache=True)
        past = first.past_key_values
        assert past.get_seq_length() == 33
        rest = model(text[:, 33:], past_key_values=past, use_cache=True)
        other = model(text[:, :5], use_cache=True)  # has a cache of its own
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other.logits, expected[:, :5], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_is_refused(implementation: str, tmp_path: Path) -> None:
    model = tiny_architectures.save("mistral", tmp_path)
    model.set_attn_implementation(implementation)
    swap.make_quant_attn(model)
    generated(model)
    prompts = torch.ones(2, 30, dtype=torch.int64)  # its window is 16
    mask = torch.ones_like(prompts)
    past = model(prompts, attention_mask=mask, use_cache=True).past_key_values
    model(prompts[:, :4], attention_mask=torch.ones(2, 34), past_key_values=past)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="prompts of different lengths, padded, are not supported"):
        model(prompts, attention_mask=mask)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (swap.make_quant_attn, "opt", "OPTForCausalLM has nothing to replace: not found was attention like Llama's"),
        (swap.make_quant_attn, "qwen3", "Qwen3ForCausalLM has nothing to replace: not found was attention like"),
        (swap.make_fused_mlp, "neox", "GPTNeoXForCausalLM has nothing to replace: not found was a gated feed-forward"),
    ],
)
def test_what_was_not_found_is_named(change: Any, name: str, message: str, tmp_path: Path) -> None:
    model = tiny_architectures.save(name, tmp_path)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        change(model)
    assert [type(module) for module in model.modules()] == before


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has nothing to replace: not found was a norm"):
        swap.make_quant_norm(nn.Sequential(nn.Linear(4, 4)))


def test_weights_of_no_linear_layer_are_refused(tmp_path: Path) -> None:
    model = tiny_architectures.save("llama", tmp_path)
    weight = quantize(torch.randn(64, 64), CONFIG)
    with pytest.raises(ValueError, match=r"no linear layer model\.layers\.7\.x \(1 of 1 names\)"):
        swap.make_quant_linear(model, {"model.layers.7.x": weight})
    with pytest.raises(ValueError, match=r"mlp\.down_proj must be \[64, 96\], got \[64, 64\]"):
        swap.make_quant_linear(model, {"model.layers.0.mlp.down_proj": weight})
    with pytest.raises(ValueError, match="LlamaForCausalLM: nothing to take"):
        swap.make_quant_linear(model, {})
    with pytest.raises(ValueError, match="dev must be cpu, where the model's weights are, got cuda"):
        swap.make_quant_attn(model, "cuda")


class Swapped(nn.Module):
    """Has what a norm has, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_norm_is_what_computes_one() -> None:
    assert read_norm(Swapped()) is None
    assert read_norm(nn.Linear(4, 4)) is None
    assert read_norm(nn.LayerNorm(8, elementwise_affine=False)) is None
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    own = read_norm(norm)
    assert own is not None
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(QuantNorm(own)(x), norm(x))
