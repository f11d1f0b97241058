"""Greedy output on the real model equals transformers' generate in fp32, token for token, alone and batched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_engine import run
from transformers import AutoModelForCausalLM

from awq.formats import dequantized_state, open_checkpoint
from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.tokenizer import Tokenizer

# around the block size of 32, and far from it
PROMPT_LENGTHS = (1, 2, 3, 5, 8, 13, 17, 24, 31, 32, 33, 40, 50, 63, 64, 65, 90, 128, 200, 300)
NUM_NEW = 24
EOS = 2


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    text = (Path(__file__).parents[1] / "data" / "northanger_abbey.txt").read_text()
    ids = Tokenizer(smollm2).encode(text[:40000])
    starts = [sum(PROMPT_LENGTHS[:index]) for index in range(len(PROMPT_LENGTHS))]
    return [ids[start : start + length] for start, length in zip(starts, PROMPT_LENGTHS, strict=True)]


def _transformers_outputs(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """`generate` for all prompts; those of similar length share a batch, padded on the left."""
    outputs = []
    for batch in (prompts[:10], prompts[10:16], prompts[16:]):
        longest = max(len(prompt) for prompt in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            full = model.generate(ids, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False)
        outputs += [_until_eos(tokens) for tokens in full[:, longest:].tolist()]
    return outputs


def _until_eos(tokens: list[int]) -> list[int]:
    """A batch goes on until its last text has ended; what follows a text's own end is padding."""
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def _check_alone_and_batched(engine: Engine, prompts: Sequence[list[int]], expected: list[list[int]]) -> None:
    params = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.0)
    assert [result.token_ids for result in run(engine, prompts, params)] == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert run(engine, [prompt], params)[0].token_ids == tokens


def test_16_bit_model_equals_transformers(smollm2: Path, prompts: list[list[int]]) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    engine = Engine.create(EngineConfig(smollm2, precision="W16A16", dtype="float32", kv_cache_bytes=1 << 29))
    _check_alone_and_batched(engine, prompts, _transformers_outputs(reference, prompts))


def test_4_bit_model_equals_transformers_on_the_dequantized_weights(
    smollm2: Path, smollm2_rtn: Path, prompts: list[list[int]]
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    state = dict(dequantized_state(open_checkpoint(smollm2_rtn), torch.float32))
    missing = reference.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys in ([], ["lm_head.weight"])  # tied
    config = EngineConfig(smollm2_rtn, dtype="float32", cpu_compute="exact", kv_cache_bytes=1 << 29)
    engine = Engine.create(config)
    _check_alone_and_batched(engine, prompts, _transformers_outputs(reference, prompts))
