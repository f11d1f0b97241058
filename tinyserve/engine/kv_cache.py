"""The tensors of the paged KV cache, and how many blocks the memory holds.

It decides sizes. Which block belongs to whom is block_manager.py's business, what is written there the layers'.
"""

import logging
import math

import torch

from tinyserve.config import EngineConfig, KvCacheDtype
from tinyserve.layers.attention import LayerCache
from tinyserve.layers.huge_pages import huge_bytes
from tinyserve.models.language_model import LanguageModel

_log = logging.getLogger(__name__)

CPU_SHARE = 0.25  # of the memory that is available, when no size is given
CPU_MAX_BYTES = 4 << 30
CUDA_SHARE = 0.85  # of what the weights leave
SCALE = torch.float32  # of a key or a value of 8 bits
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # with scales


def block_bytes(model: LanguageModel, block_size: int, dtype: KvCacheDtype = "auto") -> int:
    """Bytes of one block over all layers, keys and values, and their scales where they have 8 bits."""
    config = model.config
    head_bytes = config.head_dim + SCALE.itemsize if dtype in STORED else config.head_dim * model.dtype.itemsize
    return max(1, 2 * config.num_layers * config.num_kv_heads * head_bytes) * block_size


def num_blocks(model: LanguageModel, config: EngineConfig, context_length: int) -> int:
    """Blocks that fit in `kv_cache_bytes`, or in a share of the free memory, and that the requests could use at all.

    Raises:
        ValueError: not even one block fits, or there is no such cache on the model's device.
    """
    if config.kv_cache_dtype == "fp8" and model.device.type == "cpu":
        raise ValueError("kv_cache_dtype fp8 is for a GPU, and the model is on a CPU: use int8")
    size = block_bytes(model, config.block_size, config.kv_cache_dtype)
    budget = config.kv_cache_bytes if config.kv_cache_bytes is not None else _default_bytes(model.device)
    useful = config.max_num_requests * -(-context_length // config.block_size)
    count = min(budget // size, useful)
    if count < 1:
        raise ValueError(
            f"kv_cache_bytes must be at least {size} (one block of {config.block_size} tokens), got {budget}"
        )
    _log.info("KV cache: %d tokens in %d blocks, %.0f MB", count * config.block_size, count, count * size / 1e6)
    return count


def allocate(model: LanguageModel, count: int, block_size: int, dtype: KvCacheDtype = "auto") -> list[LayerCache]:
    """One cache per layer, [count, Hkv, S, D] each; zeros, so that no garbage can ever turn into NaN."""
    config, device = model.config, model.device
    shape = (count, config.num_kv_heads, block_size, config.head_dim)
    stored = STORED.get(dtype, model.dtype)
    scales = 2 if dtype in STORED else 0  # of keys and of values
    return [
        LayerCache(
            _zero_keys(shape, stored, device),
            _zeros(shape, stored, device),
            *(_zeros(shape[:3], SCALE, device) for _ in range(scales)),
        )
        for _ in range(config.num_layers)
    ]


def _zero_keys(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU the keys of a block lie channel by channel: attention then needs no transposition of them."""
    if device.type != "cpu":
        return _zeros(shape, dtype, device)
    count, heads, block_size, head_dim = shape
    return _zeros((count, heads, head_dim, block_size), dtype, device).transpose(2, 3)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages that the system maps on first touch: a large cache costs nothing until it is used. An allocator would hand
    # out memory that was freed earlier, and clear it.
    return huge_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def _default_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return min(CPU_MAX_BYTES, int(_available_cpu_bytes() * CPU_SHARE))


def _available_cpu_bytes() -> int:
    """Memory that can be had without swapping; a cautious 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 << 30
