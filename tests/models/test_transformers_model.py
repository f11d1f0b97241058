"""Architectures without a definition of their own: served by transformers' modules on our cache and our products."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flat_batch
import pytest
import tiny_architectures
import torch
from run_engine import run
from torch import Tensor

from awq import entry
from awq.formats import dequantized_state, open_checkpoint
from awq.network import fill
from awq.skeleton import build_skeleton
from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.layers.linear import W4A16Linear
from tinyserve.layers.modules import QuantNorm
from tinyserve.models.evaluation import logits
from tinyserve.models.loader import load_model
from tinyserve.models.transformers_model import TransformersModel

TEXT = {**tiny_architectures.TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "embedding_multiplier": 2.0}
# Beside those that the quantizer knows.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320, "n_positions": 256},
    ),
    "cohere": ("CohereForCausalLM", "cohere", TEXT),  # RoPE of neighbours in place of halves
    "granite": ("GraniteForCausalLM", "granite", {**TEXT, **GRANITE}),
    "sinks": ("GptOssForCausalLM", "gpt_oss", {**TEXT, **EXPERTS}),
    "convolution": ("Lfm2ForCausalLM", "lfm2", {**TEXT, "layer_types": ["conv", "full_attention"]}),
}
SERVED = [
    *("gpt2", "cohere", "granite"),
    *("qwen3", "gemma2", "gemma3", "phi3", "opt", "opt, norms behind", "bigcode", "neox", "mixtral", "qwen2 moe"),
    *("qwen3 moe", "qwen2 vl", "qwen2.5 vl", "qwen3 vl", "gemma3 vl"),
]
GENERATING = ["qwen3", "gemma2", "gemma3", "phi3", "opt", "neox", "mixtral", "qwen2 moe"]
LENGTHS = (40, 7, 33)  # around the windows of 16


@pytest.fixture(autouse=True)
def _others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, model in OTHERS.items():
        monkeypatch.setitem(tiny_architectures.MODELS, name, model)


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (length,), generator=generator) for length in LENGTHS]


def load(folder: Path, **settings: Any) -> TransformersModel:
    model = load_model(folder, **{"precision": "W16A16", "dtype": "float32", **settings})
    assert isinstance(model, TransformersModel)
    return model


def check(got: Sequence[Tensor], reference: Any, tolerance: float) -> None:
    """Logits of the texts against a model's of transformers, relative to its largest."""
    for rows, text in zip(got, texts(), strict=True):
        with torch.inference_mode():
            expected = reference(text[None]).logits[0]
        assert float((rows - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("name", SERVED)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    reference = tiny_architectures.save(name, tmp_path)
    model = load(tmp_path)
    norms = [module for module in reference.modules() if "norm" in type(module).__name__.lower()]
    norms = [module for module in norms if any(parameter.dim() == 1 for parameter in module.parameters())]
    own = [module for module in model._network.modules() if isinstance(module, QuantNorm)]
    assert len(own) == len(norms) > 0
    check(flat_batch.logits(model, texts(), chunk=9), reference, 1e-5)


@pytest.mark.parametrize("name", GENERATING)
def test_the_engine_says_what_generate_says(name: str, tmp_path: Path) -> None:
    reference = tiny_architectures.save(name, tmp_path)
    config = EngineConfig(
        tmp_path,
        precision="W16A16",
        dtype="float32",
        block_size=8,
        kv_cache_bytes=1 << 22,
        max_batch_tokens=24,  # prompts come in chunks, beside the others' decoding
    )
    engine = Engine(config, load(tmp_path), Tokenizer(tmp_path))
    prompts = [text.tolist() for text in texts()]
    expected = []
    for prompt in prompts:
        with torch.inference_mode():
            tokens = reference.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        expected.append(tokens[0, len(prompt) :].tolist())
    params = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
    assert [result.token_ids for result in run(engine, prompts, params)] == expected
    again = run(engine, prompts, params)
    assert [result.token_ids for result in again] == expected
    assert again[0].last is not None
    assert engine.stats().cached_tokens >= 32, "no prefix was found in the cache"


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a tiny model in 4 bits, rounded to nearest."""

    def make(name: str) -> Path:
        tiny_architectures.save(name, tmp_path / "source")
        arguments = ["--model_path", str(tmp_path / "source"), "--w_bit", "4", "--q_group_size", "32"]
        entry.main([*arguments, "--q_backend", "real", "--dump_quant", str(tmp_path / "quantized")])
        return tmp_path / "quantized"

    return make


@pytest.mark.parametrize("name", ["opt", "neox", "gemma2", "phi3", "qwen3", "mixtral", "qwen2 moe"])
def test_4_bit_logits_equal_those_of_the_dequantized_weights(name: str, quantized: Callable[[str], Path]) -> None:
    folder = quantized(name)
    checkpoint = open_checkpoint(folder)
    state = dict(dequantized_state(checkpoint, torch.float32))
    reference = fill(build_skeleton(folder, checkpoint.config, state), state.items(), torch.float32)
    model = load(folder, precision="W4A16")
    assert sum(isinstance(linear, W4A16Linear) for linear in model.linears) == len(checkpoint.modules()) > 0
    check(flat_batch.logits(model, texts()), reference, 1e-3)
    rounded = load(folder, precision="W4A16", cpu_compute="int8")
    check(flat_batch.logits(rounded, texts()), reference, 0.2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_of_16_bits(dtype: Any, tmp_path: Path) -> None:
    reference = tiny_architectures.save("gemma2", tmp_path)
    model = load(tmp_path, dtype=dtype)
    check([rows.float() for rows in flat_batch.logits(model, texts())], reference, 0.05)


def test_the_slower_way_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_architectures.save("opt", tmp_path)
    model = load(tmp_path)
    flat_batch.logits(model, texts())
    said = [record.message for record in caplog.records if "slower" in record.message]
    assert said == ["OPTForCausalLM has no definition of its own: transformers runs it, which is slower"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bloom", "BloomForCausalLM cannot be served: no max_position_embeddings, as with ALiBi, bounds its context"),
        ("falcon 7b", "FalconForCausalLM cannot be served: of 2 layers 0 attend through transformers' registry"),
        ("sinks", "GptOssForCausalLM cannot be served: GptOssAttention attends with s_aux"),
        ("convolution", "Lfm2ForCausalLM cannot be served: its layer_types hold conv"),
        ("no mapping", "StableLmForCausalLM cannot be served: StableLmAttention does not hand on what its model is"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(name: str, reason: str, tmp_path: Path) -> None:
    tiny_architectures.save(name, tmp_path)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    tiny_architectures.save("opt", tmp_path / "opt")
    (tmp_path / "opt" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration cannot be served: it has an encoder"):
        load(tmp_path)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_follows_the_longest_text_is_that_of_the_context(
    rope_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + index / 2 for index in range(8)]}
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    settings = {**tiny_architectures.TEXT, "max_position_embeddings": 64, "rope_parameters": {**rope, **factors}}
    monkeypatch.setitem(tiny_architectures.MODELS, "roped", ("Qwen3ForCausalLM", "qwen3", settings))
    reference = tiny_architectures.save("roped", tmp_path)
    text = torch.cat(texts())[:64]
    with torch.inference_mode():
        expected = reference(text[None]).logits[0]
    model = load(tmp_path)
    assert model.num_positions == 64
    torch.testing.assert_close(flat_batch.logits(model, [text])[0], expected, rtol=1e-4, atol=1e-3)
    alone = flat_batch.logits(model, [text[:9]])[0]
    beside = flat_batch.logits(model, [text, text[:9]])[1]
    torch.testing.assert_close(alone, beside)


def test_a_cache_of_8_bits(tmp_path: Path) -> None:
    tiny_architectures.save("neox", tmp_path)
    model = load(tmp_path)
    text = texts()[0][None]
    exact, rounded = logits(model, text), logits(model, text, "int8")
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05


def test_packed_weights_are_kept(quantized: Callable[[str], Path], tmp_path: Path) -> None:
    folder = quantized("opt")
    expected = logits(load(folder, precision="W4A16", packed_cache=tmp_path / "packed"), texts()[0][None])
    assert list((tmp_path / "packed").iterdir())
    again = load(folder, precision="W4A16", packed_cache=tmp_path / "packed")
    assert torch.equal(logits(again, texts()[0][None]), expected)
