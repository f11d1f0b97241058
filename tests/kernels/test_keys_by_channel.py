"""A cache whose keys lie channel by channel, as the engine's does on a CPU: the same bits as key by key."""

import pytest
import torch
from kernels.test_paged_attention import DTYPES, MIXED, make_batch
from kernels.test_rope_kv_write import make_arguments
from torch import Tensor

from tinyserve import ops
from tinyserve.layers.attention import LayerCache

CACHES = pytest.mark.parametrize("in_8_bits", [False, True], ids=["16 bits", "int8"])


def by_channel(k_cache: Tensor) -> Tensor:
    return k_cache.transpose(2, 3).contiguous().transpose(2, 3)


@DTYPES
@CACHES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(9, 3, 64, 32), (8, 1, 40, 16), (2, 2, 8, 8)]
)
def test_attention(
    heads: int, kv_heads: int, head_dim: int, block_size: int, in_8_bits: bool, dtype: torch.dtype, device: str
) -> None:
    if device == "cuda":
        pytest.skip("of the CPU alone")
    batch = make_batch(MIXED, heads, kv_heads, head_dim, block_size, dtype)
    batch = batch.rounded() if in_8_bits else batch
    assert torch.equal(batch._replace(k_cache=by_channel(batch.k_cache)).attend(), batch.attend())


@DTYPES
@CACHES
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (96, 24), (8, 2)])
def test_writing(head_dim: int, rotary_dim: int, in_8_bits: bool, dtype: torch.dtype, device: str) -> None:
    if device == "cuda":
        pytest.skip("of the CPU alone")
    given = make_arguments(23, 9, 3, head_dim, rotary_dim, dtype)

    def written(layout: str) -> tuple[Tensor, LayerCache]:
        k, v = given.k_cache.clone(), given.v_cache.clone()
        cache = LayerCache(k, v)
        if in_8_bits:
            cache = LayerCache(k.to(torch.int8), v.to(torch.int8), torch.zeros(k.shape[:3]), torch.zeros(k.shape[:3]))
        keys = by_channel(cache.k) if layout == "channel" else cache.k
        arguments = given._replace(k_cache=keys, v_cache=cache.v)
        q = ops.rope_kv_write(*arguments, cache.k_scales, cache.v_scales)
        return q, LayerCache(keys, cache.v, cache.k_scales, cache.v_scales)

    (q, cache), (expected_q, expected) = written("channel"), written("key")
    assert torch.equal(q, expected_q)
    for part, other in zip(vars(cache).values(), vars(expected).values(), strict=True):
        assert part is None if other is None else torch.equal(part, other)


def test_other_strides_are_refused() -> None:
    batch = make_batch([(1, 5)], block_size=32)
    k_cache = batch.k_cache.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(RuntimeError, match="k_cache must be contiguous, got strides"):
        batch._replace(k_cache=k_cache).attend()
