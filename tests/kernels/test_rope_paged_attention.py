"""rope_paged_attention against rope_kv_write and paged_attention, which have tests of their own: the same bits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from kernels.test_paged_attention import make_batch
from torch import Tensor

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
CACHES = pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn], ids=["16 bits", "int8", "float8"])
CONTEXTS = [1, 200, 16, 17, 65, 64, 2, 331]  # around pages and tiles, and long enough to be cut
NUM_POSITIONS = 400


@pytest.fixture(autouse=True)
def _kernels_there_are(request: pytest.FixtureRequest) -> None:
    """Skips what a backend refuses."""
    parameters = getattr(request.node, "callspec", None) and request.node.callspec.params
    on_cpu = parameters and parameters["device"].startswith("cpu")
    if parameters and parameters.get("dtype") == torch.float32 and not on_cpu:
        pytest.skip("CUDA has no kernel for float32")
    if parameters and parameters.get("codes") == torch.float8_e4m3fn and on_cpu:
        pytest.skip("the CPU has no kernel for float8")


class Step(NamedTuple):
    qkv: Tensor
    positions: Tensor
    cos_sin: Tensor
    slots: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_starts: Tensor
    context_lens: Tensor
    num_heads: int
    scale: float
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    window: int = 0
    soft_cap: float = 0.0
    alibi_slopes: Tensor | None = None

    def to(self, device: str) -> "Step":
        """A copy there."""
        copies: dict[str, Any] = {
            name: value.to(device, copy=True) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(**copies)

    def caches(self) -> list[Tensor]:
        return [cache for cache in (self.k_cache, self.v_cache, self.k_scales, self.v_scales) if cache is not None]

    def in_two_calls(self) -> Tensor:
        scales = (self.k_scales, self.v_scales)
        q = ops.rope_kv_write(*self[:6], self.num_heads, *scales)
        cache = (self.k_cache, self.v_cache, *self[6:9])
        return ops.paged_attention(q, *cache, self.scale, *scales, self.window, self.soft_cap, self.alibi_slopes)


def make_step(
    contexts: list[int],
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
    rotary_dim: int | None = None,
    dtype: torch.dtype = torch.float16,
    codes: torch.dtype | None = None,
    block_size: int = 16,
) -> Step:
    """One token of each request; what lies in the cache where it will go is poisoned."""
    batch = make_batch([(1, n) for n in contexts], heads, kv_heads, head_dim, block_size, dtype)
    if codes is not None:
        batch = batch.rounded(codes)
    positions = batch.context_lens - 1
    pages = batch.block_tables.gather(1, (positions // block_size).long()[:, None])[:, 0]
    angles = torch.rand(NUM_POSITIONS, (head_dim if rotary_dim is None else rotary_dim) // 2) * 6.3
    step = Step(
        qkv=torch.randn(len(contexts), (heads + 2 * kv_heads) * head_dim).to(dtype),
        positions=positions,
        cos_sin=torch.cat([angles.cos(), angles.sin()], dim=1),
        slots=pages * block_size + positions % block_size,
        k_cache=batch.k_cache,
        v_cache=batch.v_cache,
        block_tables=batch.block_tables,
        query_starts=batch.query_starts,
        context_lens=batch.context_lens,
        num_heads=heads,
        scale=batch.scale,
        k_scales=batch.k_scales,
        v_scales=batch.v_scales,
    )
    poisoned = (step.k_cache, step.v_cache) if codes is None else (batch.k_scales, batch.v_scales)
    for cache in poisoned:
        assert cache is not None
        cache.transpose(1, 2)[pages.long(), (positions % block_size).long()] = torch.nan
    return step


def check(step: Step, device: str) -> None:
    given, kept = step.to(device), step.to(device)
    expected = given.in_two_calls()
    out = ops.rope_paged_attention(*kept)
    assert out.dtype == expected.dtype
    assert not out.isnan().any()
    assert torch.equal(out, expected)
    for cache, want in zip(kept.caches(), given.caches(), strict=True):
        assert torch.equal(cache.view(torch.uint8), want.view(torch.uint8))


@DTYPES
@CACHES
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (20, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_equals_the_two_calls(
    head_dim: int, heads: int, kv_heads: int, codes: torch.dtype | None, dtype: torch.dtype, device: str
) -> None:
    contexts = CONTEXTS if head_dim == 64 else CONTEXTS[:3]
    check(make_step(contexts, heads, kv_heads, head_dim, None, dtype, codes), device)


@CACHES
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (64, 0), (64, 32), (96, 24), (80, 20), (112, 56)])
def test_equals_the_two_calls_where_a_part_of_a_head_turns(
    head_dim: int, rotary_dim: int, codes: torch.dtype | None, device: str
) -> None:
    """96 with 24 and 80 with 20 are no whole pieces of 16 bytes: two kernels everywhere."""
    check(make_step(CONTEXTS[:4], 6, 2, head_dim, rotary_dim, codes=codes), device)


@pytest.mark.parametrize("block_size", [1, 3, 32, 256])
@pytest.mark.parametrize("window", [0, 1, 40])
def test_equals_the_two_calls_for_every_block_size_and_window(window: int, block_size: int, device: str) -> None:
    check(make_step(CONTEXTS, 6, 2, block_size=block_size)._replace(window=window), device)


def test_equals_the_two_calls_with_capped_and_biased_scores(device: str) -> None:
    slopes = 2.0 ** -torch.arange(1, 10)
    check(make_step(CONTEXTS)._replace(soft_cap=2.0, alibi_slopes=slopes), device)


@pytest.mark.parametrize("multiprocessors", [1, 2, 5, 40])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_equals_the_two_calls_on_any_gpu(
    capability: int, multiprocessors: int, device: str, emulated_gpu: Callable[[int, int], None]
) -> None:
    emulated_gpu(multiprocessors, capability)
    check(make_step([370, 1, 130], 20, 1), device)
    check(make_step([370, 1], 8, 2, 256, codes=torch.int8), device)


@CACHES
def test_a_token_without_a_slot_writes_nothing_and_disturbs_nobody(
    codes: torch.dtype | None, device: str, is_cuda: bool
) -> None:
    step = make_step([40, 1, 70, 90], codes=codes)
    whole = ops.rope_paged_attention(*step.to(device))
    padded = step._replace(slots=step.slots.clone(), context_lens=step.context_lens.clone())
    padded.slots[1:3] = -1
    padded.context_lens[1] = 0 if is_cuda else 1  # on a GPU padding may have no keys, and then has no result
    padded.context_lens[2] = 1
    given = padded.to(device)
    out = ops.rope_paged_attention(*given)
    for request in (0, 3):
        torch.testing.assert_close(out[request], whole[request], rtol=2e-3, atol=2e-3)
    pages = step.block_tables[1:3, 0].long()
    for cache, before in zip(given.caches(), step.caches(), strict=True):
        assert torch.equal(cache.cpu()[pages].view(torch.uint8), before[pages].view(torch.uint8))


def test_the_padding_sees_its_own_key_alone(device: str, is_cuda: bool) -> None:
    if not is_cuda:
        pytest.skip("the CPU has two kernels, of which the second reads the cache")
    step = make_step([1, 1], 4, 2)
    step.slots[:] = -1
    out = ops.rope_paged_attention(*step.to(device)).cpu()
    values = step.qkv.view(2, 8, 64)[:, 6:].repeat_interleave(2, dim=1)
    assert torch.equal(out, values)


def test_no_tokens(device: str) -> None:
    assert ops.rope_paged_attention(*make_step([]).to(device)).shape == (0, 9, 64)


def test_names_a_request_of_two_queries(device: str) -> None:
    if device == "cuda":
        pytest.skip("what lies in a GPU's memory is not looked at")
    step = make_step([5, 9])
    starts = torch.tensor([0, 2, 2], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="a request must have at most one query, got 2"):
        ops.rope_paged_attention(*step._replace(query_starts=starts))


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    torch.library.opcheck(torch.ops.tinyserve.rope_paged_attention, tuple(make_step([5, 30]).to(device)))
