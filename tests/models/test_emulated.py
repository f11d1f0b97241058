"""A whole small model on the CUDA kernels, run by the emulator: it must choose the tokens that the CPU's kernels do.

What has no CUDA kernel is the CPU's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flat_batch
import pytest
import tiny_llama
import torch
from emulator import library
from llama_model import load_llama
from torch import Tensor

from tinyserve import ops
from tinyserve.config import DtypeName
from tinyserve.models.llama import LlamaModel

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("chunk", [1, 16, None], ids=["decode", "chunks", "whole"])
def test_a_model_chooses_the_tokens_of_the_cpu(
    chunk: int | None, dtype: DtypeName, tmp_path: Path, emulate: Callable[[], None]
) -> None:
    folder = tiny_llama.save(tmp_path, num_key_value_heads=1, initializer_range=0.15)  # attention of many keys
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 320, (length,), generator=generator) for length in PROMPT_LENGTHS]
    model = load_llama(folder, precision="W16A16", dtype=dtype)
    with torch.inference_mode():
        texts = [text[:-1] for text in greedy(model, prompts)]
        expected = torch.cat(flat_batch.logits(model, texts)).double()
        emulate()
        logits = torch.cat(flat_batch.logits(model, texts, chunk=chunk)).double()
    best = expected.topk(2).values
    is_clear = best[:, 0] - best[:, 1] > NEAR[dtype] * expected.std()
    assert is_clear.double().mean() > 0.7
    assert torch.equal(logits.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])
