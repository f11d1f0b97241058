"""A whole small model on the CUDA kernels, run by the emulator: it must choose the tokens that the CPU's kernels do.

What has no CUDA kernel is the CPU's.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flat_batch
import pytest
import reference
import tiny_architectures
import tiny_llama
import tiny_model
import tiny_quantized
import torch
from emulator import library
from llama_model import load_llama
from run_engine import run
from torch import Tensor

from tinyserve import ops
from tinyserve.config import DtypeName, EngineConfig, KvCacheDtype, Precision, SamplingParams
from tinyserve.engine import kv_cache
from tinyserve.engine.engine import Engine
from tinyserve.engine.model_runner import ModelRunner
from tinyserve.engine.request import Request
from tinyserve.engine.scheduler import Chunked, Step
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.llama import LlamaModel
from tinyserve.models.loader import load_model

PROMPT_LENGTHS = (5, 70, 19)
NEW_TOKENS = 10
NEAR = {"float16": 0.02, "bfloat16": 0.05}  # of the standard deviation of logits: what rounding may exchange


def emulated_where_there_is(name: str, device: str) -> Callable[..., Any]:
    """What ops._kernel is while a model runs on the emulator."""
    found = torch._C._dispatch_has_kernel_for_dispatch_key(f"tinyserve_emulated::{name}", "CPU")
    library = torch.ops.tinyserve_emulated if found else torch.ops.tinyserve
    kernel: Callable[..., Any] = getattr(library, name).default
    return kernel


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function from whose call on models run on the emulator."""
    if why_not := library.load():
        pytest.skip(why_not)
    return lambda: monkeypatch.setattr(ops, "_kernel", emulated_where_there_is)


def greedy(model: LlamaModel, texts: list[Tensor]) -> list[Tensor]:
    """The texts, each with NEW_TOKENS more."""
    for _ in range(NEW_TOKENS):
        chosen = [rows[-1].argmax() for rows in flat_batch.logits(model, texts)]
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, chosen, strict=True)]
    return texts


@pytest.mark.parametrize("precision", ["W16A16", "W4A16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("chunk", [1, 16, None], ids=["decode", "chunks", "whole"])
def test_a_model_chooses_the_tokens_of_the_cpu(
    chunk: int | None, dtype: DtypeName, precision: Precision, tmp_path: Path, emulate: Callable[[], None]
) -> None:
    settings: dict[str, Any] = {"num_key_value_heads": 1, "initializer_range": 0.15}  # attention of many keys
    folder = tiny_llama.save(tmp_path / "model", dtype=getattr(torch, dtype), **settings)
    if precision == "W4A16":
        folder = tiny_quantized.save(tmp_path / "quantized", folder)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 320, (length,), generator=generator) for length in PROMPT_LENGTHS]
    model = load_llama(folder, precision=precision, dtype=dtype)
    with torch.inference_mode():
        texts = [text[:-1] for text in greedy(model, prompts)]
        expected = torch.cat(flat_batch.logits(model, texts)).double()
        emulate()
        model = load_llama(folder, precision=precision, dtype=dtype)  # packed anew, blocks computed as on a GPU
        assert all((linear.fused is not None) == (precision == "W4A16") for linear in model.linears[:-1])
        logits = torch.cat(flat_batch.logits(model, texts, chunk=chunk)).double()
    best = expected.topk(2).values
    is_clear = best[:, 0] - best[:, 1] > NEAR[dtype] * expected.std()
    assert is_clear.double().mean() > 0.7
    assert torch.equal(logits.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


@pytest.mark.parametrize("name", ["opt", "gemma2"])  # LayerNorm; a soft cap, a window, norms with 1 + weight
def test_what_transformers_runs_gives_the_logits_of_the_cpu(
    name: str, tmp_path: Path, emulate: Callable[[], None]
) -> None:
    tiny_architectures.save(name, tmp_path, std=0.1)
    model = load_model(tmp_path, precision="W16A16", dtype="float16")
    texts = [torch.randint(0, 320, (length,), generator=torch.Generator().manual_seed(length)) for length in (5, 21)]
    expected = torch.cat(flat_batch.logits(model, texts))
    emulate()
    logits = torch.cat(flat_batch.logits(model, texts, chunk=8))
    assert reference.relative_error(logits, expected.double()) < 0.01


class Padded:
    """Recordings that record nothing: a step is padded to `to` requests, and computed."""

    def __init__(self, to: int) -> None:
        self._to = to

    def size(self, num_requests: int) -> int | None:
        return self._to

    def run(self, size: int, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def prepare(self, work_of: Callable[[int], Callable[[], Tensor]]) -> None:
        pass


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_padding_changes_nobodys_bits(
    kv_cache_dtype: KvCacheDtype, tmp_path: Path, emulate: Callable[[], None]
) -> None:
    """A decode step as a CUDA graph has it: rows up to the graph's size that nobody asked for."""
    folder = tiny_llama.save(tmp_path, num_key_value_heads=1, initializer_range=0.15)
    model = load_llama(folder, precision="W16A16", dtype="float16")
    emulate()
    # keys as they lie on a GPU
    caches = [replace(each, k=each.k.contiguous()) for each in kv_cache.allocate(model, 16, 8, kv_cache_dtype)]
    for cache in caches:  # block 0 is another's, and is not to be read: NaN in 16 and in 8 bits
        cache.k.view(torch.uint8)[0].fill_(0x7F)
        cache.v.view(torch.uint8)[0].fill_(0x7F)
    runner = ModelRunner(model, caches, 8, max_tokens=128, max_requests=8, max_blocks=12, enforce_eager=True)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 320, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    requests = [Request(index, prompt, SamplingParams()) for index, prompt in enumerate(prompts)]
    free = list(range(1, 16))
    for request in requests:
        request.block_ids = [free.pop(0) for _ in range(request.num_tokens // 8 + 1)]
    runner.run(Step(tuple(Chunked(request, request.num_tokens) for request in requests), 0))
    for request in requests:
        request.num_computed = request.num_tokens
        request.token_ids.append(7)
    step = Step(tuple(Chunked(request, 1) for request in requests), len(requests))
    expected = runner.run(step)[1].clone()
    written = [[part.clone() for part in vars(cache).values() if part is not None] for cache in caches]
    for to in (3, 4, 8):
        runner._recordings = Padded(to)
        assert torch.equal(runner.run(step)[1], expected)
        for cache, before in zip(caches, written, strict=True):
            after = [part for part in vars(cache).values() if part is not None]
            assert all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(after, before, strict=True)
            )


def test_an_engine_that_pads_and_looks_ahead_says_the_same(
    tmp_path: Path, emulate: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: tokens go from step to step on the device, in batches of one size while requests come and go."""
    folder = tiny_model.save(tmp_path, num_key_value_heads=1, initializer_range=0.15)
    model, tokenizer = load_llama(folder, precision="W16A16", dtype="float16"), Tokenizer(folder)
    monkeypatch.setattr(kv_cache, "_zero_keys", kv_cache._zeros)  # as they lie on a GPU
    emulate()
    settings: dict[str, Any] = {"precision": "W16A16", "dtype": "float16", "block_size": 8, "enforce_eager": True}
    size = 40 * kv_cache.block_bytes(model, 8)
    prompts = [list(range(40, 40 + length)) for length in PROMPT_LENGTHS]
    params = [SamplingParams(max_new_tokens=length, temperature=0.0, ignore_eos=True) for length in (3, 8, 12)]
    results = []
    for recordings, overlap in ((None, False), (Padded(4), True)):
        config = EngineConfig(folder, kv_cache_bytes=size, max_num_requests=4, overlap=overlap, **settings)
        engine = Engine(config, model, tokenizer)
        engine._runner._recordings = recordings
        results.append([result.token_ids for result in run(engine, prompts, params)])
    assert results[0] == results[1]
    assert [len(tokens) for tokens in results[0]] == [3, 8, 12]
