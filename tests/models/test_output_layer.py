"""The output layer in 8 bits, of models whose embedding it is and of others."""

import logging
from pathlib import Path
from typing import get_args

import pytest
import tiny_llama
import tiny_model
import tiny_quantized
import torch
from llama_model import load_llama
from run_engine import run
from torch import Tensor

from tinyserve.config import EngineConfig, LmHeadDtype, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.layers.embedding import Embedding, W8Embedding
from tinyserve.layers.int8_linear import W8A16Linear
from tinyserve.layers.linear import Linear, W4A16Linear, W8A8Linear
from tinyserve.models.evaluation import logits
from tinyserve.models.llama import LlamaModel


def texts() -> Tensor:
    return torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))


def distance(model: LlamaModel, other: LlamaModel) -> float:
    first, second = (logits(each, texts()).float() for each in (model, other))
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("tied", [False, True])
def test_is_rounded_where_asked(tied: bool, tmp_path: Path) -> None:
    folder = tiny_llama.save(tmp_path / "model", tie_word_embeddings=tied)
    exact = load_llama(folder, precision="W16A16")
    rounded = load_llama(folder, precision="W16A16", lm_head_dtype="int8")
    assert isinstance(exact.lm_head, Linear)
    assert isinstance(rounded.lm_head, W8A16Linear)
    assert isinstance(rounded.embedding, Embedding)
    assert torch.equal(rounded.embedding.weight, exact.embedding(torch.arange(320)))  # tokens are looked up as before
    assert 0.001 < distance(rounded, exact) < 0.01
    assert not rounded.only_own_kernels  # a tape would not hold all of it


def test_every_step_of_an_engine_has_its_own_logits(tmp_path: Path) -> None:
    folder = tiny_model.save(tmp_path / "model", initializer_range=0.4)
    config = EngineConfig(folder, precision="W16A16", lm_head_dtype="int8", kv_cache_bytes=1 << 22, device="cpu")
    prompt = [5, 9, 200, 31]
    (result,) = run(Engine.create(config), [prompt], SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True))
    whole = torch.tensor([prompt + result.token_ids])
    chosen = logits(load_llama(folder, precision="W16A16", lm_head_dtype="int8"), whole)[0].argmax(-1)
    assert chosen[len(prompt) - 1 : -1].tolist() == result.token_ids


def test_a_cpu_that_rounds_activations_has_its_own(tmp_path: Path) -> None:
    source = tiny_llama.save(tmp_path / "source", dtype=torch.float16, tie_word_embeddings=True)
    folder = tiny_quantized.save(tmp_path / "model", source)
    models = [load_llama(folder, cpu_compute="int8", lm_head_dtype=name) for name in get_args(LmHeadDtype)]
    for model in models:
        assert isinstance(model.embedding, W8Embedding)
        assert isinstance(model.lm_head, W8A8Linear)
    assert distance(*models) == 0


def test_one_of_4_bits_stays_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_llama.save(tmp_path / "source", dtype=torch.float16)
    folder = tiny_quantized.save(tmp_path / "model", source, has_lm_head=True)
    with caplog.at_level(logging.WARNING):
        model = load_llama(folder, lm_head_dtype="int8")
    assert type(model.lm_head) is W4A16Linear
    assert "the output layer is not rounded to 8 bits: the checkpoint has it quantized already" in caplog.text
