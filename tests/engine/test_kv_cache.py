"""How large the KV cache becomes, and that its memory is there only when it is used."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyserve.config import EngineConfig
from tinyserve.engine import kv_cache
from tinyserve.models.llama import LlamaModel

# keys and values, 2 layers, 2 heads of 32 fp32 numbers
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4


def config(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(folder, precision="W16A16", dtype="float32", block_size=16, **settings)


def test_blocks_fill_the_bytes_given(
    tiny_folder: Path, tiny_model: LlamaModel, caplog: pytest.LogCaptureFixture
) -> None:
    size = 16 * TOKEN_BYTES
    assert kv_cache.block_bytes(tiny_model, 16) == size
    with caplog.at_level(logging.INFO):
        assert kv_cache.num_blocks(tiny_model, config(tiny_folder, kv_cache_bytes=10 * size + 5), 256) == 10
    assert "KV cache: 160 tokens in 10 blocks" in caplog.text


def test_no_more_blocks_than_all_requests_could_use(tiny_folder: Path, tiny_model: LlamaModel) -> None:
    assert kv_cache.num_blocks(tiny_model, config(tiny_folder, max_num_requests=3), 250) == 3 * 16


def test_too_little_memory_for_one_block_is_refused(tiny_folder: Path, tiny_model: LlamaModel) -> None:
    settings = EngineConfig(tiny_folder, block_size=128, kv_cache_bytes=1 << 16)
    with pytest.raises(
        ValueError, match=r"kv_cache_bytes must be at least 131072 \(one block of 128 tokens\), got 65536"
    ):
        kv_cache.num_blocks(tiny_model, settings, 256)


def test_caches_are_zero_and_one_per_layer(tiny_model: LlamaModel) -> None:
    caches = kv_cache.allocate(tiny_model, 3, 16)
    assert len(caches) == 2
    for cache in caches:
        assert cache.k.shape == cache.v.shape == (3, 2, 16, 32)
        assert cache.k.dtype == torch.float32
        assert not cache.k.any()
        assert not cache.v.any()
        assert cache.k.data_ptr() != cache.v.data_ptr()


def test_int8_takes_a_byte_and_a_share_of_a_scale(tiny_folder: Path, tiny_model: LlamaModel) -> None:
    size = 16 * 2 * 2 * 2 * (32 + 4)
    assert kv_cache.block_bytes(tiny_model, 16, "int8") == size
    settings = config(tiny_folder, kv_cache_dtype="int8", kv_cache_bytes=20 * size)
    assert kv_cache.num_blocks(tiny_model, settings, 500) == 20
    for cache in kv_cache.allocate(tiny_model, 3, 16, "int8"):
        assert cache.k.dtype == cache.v.dtype == torch.int8
        assert cache.k_scales is not None
        assert cache.v_scales is not None
        assert cache.k_scales.shape == cache.v_scales.shape == (3, 2, 16)
        assert not cache.k_scales.any()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to see its own memory")
def test_a_large_cache_costs_nothing_until_it_is_used(tiny_model: LlamaModel) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    caches = kv_cache.allocate(tiny_model, 1 << 16, 16)
    assert sum(cache.k.nbytes + cache.v.nbytes for cache in caches) == 1 << 30
    assert resident() - before < 1 << 27


def test_fp8_is_refused_on_a_cpu(tiny_folder: Path, tiny_model: LlamaModel) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype fp8 is for a GPU, and the model is on a CPU: use int8"):
        kv_cache.num_blocks(tiny_model, config(tiny_folder, kv_cache_dtype="fp8"), 500)
