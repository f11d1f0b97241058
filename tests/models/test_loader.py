"""Loading: our definitions against transformers on small random models, and every way a checkpoint can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import tiny_quantized
import torch
from llama_model import load_llama
from transformers import AutoModelForCausalLM

from awq.formats import dequantized_state, open_checkpoint
from tinyserve.layers.linear import Linear, W4A8Linear, W4A16Linear, W8A8Linear
from tinyserve.models.evaluation import logits
from tinyserve.models.loader import load_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads": {"num_key_value_heads": 4},
    "head_dim 64": {"head_dim": 64},
    "tied": {"tie_word_embeddings": True},
    "ragged vocabulary": {"vocab_size": 333},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "no layers": {"num_hidden_layers": 0},
}


def texts(vocab_size: int = 320) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, 75), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = tiny_llama.save(tmp_path / "model", **settings)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(texts()).logits
    got = logits(load_model(folder, precision="W16A16"), texts())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1.5e-1)])
def test_16_bit_checkpoints_run_in_their_own_dtype(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    folder = tiny_llama.save(tmp_path / "model", dtype=dtype, initializer_range=0.1)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(texts()).logits
    got = logits(load_model(folder, precision="W16A16"), texts())
    assert got.dtype == dtype
    error = (got.float() - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.parametrize("position", ["rope_scaling", "rope_parameters"])
def test_both_places_of_rope_settings_are_read(tmp_path: Path, position: str) -> None:
    folder = tiny_llama.save(tmp_path / "model", rope_parameters=LLAMA3)
    expected = logits(load_model(folder, precision="W16A16"), texts())
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("rope_parameters")
    if position == "rope_scaling":  # as transformers 4 wrote it
        config["rope_theta"] = settings.pop("rope_theta")
    config[position] = settings
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(logits(load_model(folder, precision="W16A16"), texts()), expected)


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes the tiny model in 4 bits; `excluded` modules stay in 16 bits."""

    def make(group_size: int = 32, excluded: tuple[str, ...] = (), **settings: Any) -> Path:
        source = tiny_llama.save(tmp_path / "source", dtype=torch.float16, **settings)
        return tiny_quantized.save(tmp_path / "quantized", source, group_size, excluded)

    return make


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_4_bit_logits_equal_transformers_on_the_dequantized_weights(
    quantized: Callable[..., Path], tmp_path: Path, group_size: int
) -> None:
    folder = quantized(group_size, attention_bias=True)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    reference.load_state_dict(dict(dequantized_state(open_checkpoint(folder), torch.float32)))
    with torch.inference_mode():
        expected = reference(texts()).logits
    model = load_llama(folder, dtype="float32")
    assert isinstance(model.layers[0].attention.qkv, W4A16Linear)
    torch.testing.assert_close(logits(model, texts()), expected, rtol=1e-3, atol=1e-3)


def test_a_cpu_can_round_activations(quantized: Callable[..., Path]) -> None:
    folder = quantized()
    exact = logits(load_model(folder, dtype="float32"), texts())
    model = load_llama(folder, dtype="float32", cpu_compute="int8")
    assert isinstance(model.layers[0].attention.qkv, W4A8Linear)
    assert isinstance(model.lm_head, W8A8Linear)
    rounded = logits(model, texts())
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.1


def test_quant_path_gives_the_weights_and_model_path_the_rest(quantized: Callable[..., Path], tmp_path: Path) -> None:
    folder = quantized()
    expected = logits(load_model(folder, dtype="float32"), texts())
    got = logits(load_model(tmp_path / "source", quant_path=folder, dtype="float32"), texts())
    torch.testing.assert_close(got, expected)


def test_a_layer_whose_parts_differ_runs_in_16_bits(quantized: Callable[..., Path], tmp_path: Path) -> None:
    folder = quantized(excluded=("k_proj",))
    model = load_llama(folder, dtype="float32")
    assert isinstance(model.layers[0].attention.qkv, Linear)
    assert isinstance(model.layers[0].attention.out, W4A16Linear)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    reference.load_state_dict(dict(dequantized_state(open_checkpoint(folder), torch.float32)))
    with torch.inference_mode():
        expected = reference(texts()).logits
    torch.testing.assert_close(logits(model, texts()), expected, rtol=1e-3, atol=1e-3)


def test_w4a16_without_4_bit_weights_names_both_flags(tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"--model-path .* is not quantized and --quant-path is not given"):
        load_model(folder)


def test_w16a16_on_4_bit_weights_is_refused(quantized: Callable[..., Path], tmp_path: Path) -> None:
    folder = quantized()
    with pytest.raises(ValueError, match=r"precision W16A16 needs 16-bit weights, but --model-path .* holds 4-bit"):
        load_model(folder, precision="W16A16")
    with pytest.raises(ValueError, match=r"precision W16A16 needs 16-bit weights, but --quant-path .* holds 4-bit"):
        load_model(tmp_path / "source", quant_path=folder, precision="W16A16")


def test_missing_folders_are_named_with_their_flag(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"--model-path: {missing} does not exist"):
        load_model(missing, precision="W16A16")
    folder = tiny_llama.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=f"--quant-path: {missing} does not exist"):
        load_model(folder, quant_path=missing)


def test_a_context_longer_than_the_model_s_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    with pytest.raises(ValueError, match="--max-context must be at most the model's 256 tokens, got 257"):
        load_model(folder, precision="W16A16", max_context=257)
    assert load_model(folder, precision="W16A16", max_context=100).num_positions == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["OwnForCausalLM"]},
            "architectures is OwnForCausalLM; transformers .* has no such class, and code from the model folder is not",
        ),
        ({"architectures": None}, "architectures is none named; transformers .* has no such class"),
        (
            {"architectures": ["OwnForCausalLM"], "model_type": "own"},
            "neither tinyserve nor transformers knows OwnForCausalLM with model_type 'own'",
        ),
        ({"sliding_window": "256"}, "sliding_window must be a positive integer or null, got '256'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads 4, got 3"),
        ({"hidden_size": None}, "hidden_size must be an integer, got None"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be an integer, got '2'"),
        (
            {"rope_parameters": {"rope_type": "other"}},
            "rope_type must be one of default, linear, dynamic, .*, got 'other'",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type 'linear' needs 'factor'"),
        ({"num_hidden_layers": 3}, r"the checkpoint has no tensor model\.layers\.2\.input_layernorm\.weight"),
        (
            {"intermediate_size": 160},
            r"layers\.0\.mlp\.gate_proj\.weight must have the shape \[160, 64\] by config\.json, got \[128, 64\]",
        ),
        ({"dtype": "int8"}, "dtype must be one of float16, bfloat16, float32, got 'int8'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_model(folder, precision="W16A16")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(tmp_path: Path, kept: float) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(folder, precision="W16A16")


def test_overwritten_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(folder, precision="W16A16")


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path / "model")
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="safetensors"):
        load_model(folder, precision="W16A16")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(folder, precision="W16A16")


def test_a_text_longer_than_the_model_s_context_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny_llama.save(tmp_path / "model"), precision="W16A16")
    with pytest.raises(ValueError, match="a text must be at most 256 tokens, got 257"):
        logits(model, torch.zeros(1, 257, dtype=torch.int64))
