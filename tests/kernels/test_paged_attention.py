"""paged_attention against the fp64 reference, on every device this machine has."""

from typing import NamedTuple

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (8, 1), (14, 2)])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
# (queries, context) per request: first prefill, prefill behind a cached prefix, decode; lengths beside every tile edge
MIXED = [(1, 1), (1, 17), (5, 5), (1, 300), (33, 33), (7, 130), (2, 257), (1, 256), (40, 257), (0, 64), (1, 1031)]


class Batch(NamedTuple):
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_starts: Tensor
    context_lens: Tensor
    scale: float
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    def to(self, device: str) -> "Batch":
        return self._replace(
            q=self.q.to(device),
            k_cache=self.k_cache.to(device),
            v_cache=self.v_cache.to(device),
            block_tables=self.block_tables.to(device),
            query_starts=self.query_starts.to(device),
            context_lens=self.context_lens.to(device),
            k_scales=None if self.k_scales is None else self.k_scales.to(device),
            v_scales=None if self.v_scales is None else self.v_scales.to(device),
        )

    def rounded(self) -> "Batch":
        """The same with caches of int8, and what is poisoned poisoned in its scale."""
        (k_codes, k_scales), (v_codes, v_scales) = (rounded(cache) for cache in (self.k_cache, self.v_cache))
        return self._replace(k_cache=k_codes, v_cache=v_codes, k_scales=k_scales, v_scales=v_scales)

    def exact(self) -> "Batch":
        """The same with caches of floats."""
        if self.k_scales is None or self.v_scales is None:
            return self
        k_cache, v_cache = self.k_cache * self.k_scales[..., None], self.v_cache * self.v_scales[..., None]
        return self._replace(k_cache=k_cache, v_cache=v_cache, k_scales=None, v_scales=None)

    def attend(self) -> Tensor:
        return ops.paged_attention(*self)


def rounded(cache: Tensor) -> tuple[Tensor, Tensor]:
    """A cache [blocks, Hkv, S, D] in int8, and its scales."""
    scales = cache.float().abs().amax(-1) / 127
    return (cache.float() / scales[..., None]).nan_to_num().round().to(torch.int8), scales


def make_batch(
    lengths: list[tuple[int, int]],
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Requests of the given (queries, context) over a cache in random page order; what no request owns is poisoned."""
    needed = [-(-context // block_size) for _, context in lengths]
    num_blocks = sum(needed) + 3
    free = torch.randperm(num_blocks).int()
    k_cache = torch.randn(num_blocks, kv_heads, block_size, head_dim)
    v_cache = torch.randn_like(k_cache)
    owned = torch.zeros(num_blocks, block_size, dtype=torch.bool)
    # entries past a request's own blocks are never read, so they may hold anything
    tables = torch.full((len(lengths), max(needed, default=0) + 2), -12345, dtype=torch.int32)
    for request, (_, context) in enumerate(lengths):
        tables[request, : needed[request]], free = free[: needed[request]], free[needed[request] :]
        positions = torch.arange(context)
        owned[tables[request, positions // block_size].long(), positions % block_size] = True
    for cache in (k_cache, v_cache):
        cache.transpose(1, 2)[~owned] = float("nan")
    queries = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).int()
    return Batch(
        q=torch.randn(int(queries[-1]), heads, head_dim).to(dtype),
        k_cache=k_cache.to(dtype),
        v_cache=v_cache.to(dtype),
        block_tables=tables,
        query_starts=queries,
        context_lens=torch.tensor([context for _, context in lengths], dtype=torch.int32),
        scale=head_dim**-0.5,
    )


def alone(batch: Batch, request: int) -> Batch:
    """The same request without its neighbours."""
    first, last = (int(n) for n in batch.query_starts[request : request + 2])
    return batch._replace(
        q=batch.q[first:last].contiguous(),
        block_tables=batch.block_tables[request : request + 1].contiguous(),
        query_starts=torch.tensor([0, last - first], dtype=torch.int32, device=batch.q.device),
        context_lens=batch.context_lens[request : request + 1].contiguous(),
    )


def check(batch: Batch, device: str) -> None:
    out = batch.to(device).attend()
    assert out.shape == batch.q.shape
    assert out.dtype == batch.q.dtype
    assert reference.relative_error(out.cpu(), reference.paged_attention(*batch.exact()[:7])) < TOLERANCE[batch.q.dtype]


@DTYPES
@HEADS
def test_matches_reference_on_a_mixed_batch(heads: int, kv_heads: int, dtype: torch.dtype, device: str) -> None:
    check(make_batch(MIXED, heads, kv_heads, dtype=dtype), device)


@DTYPES
@pytest.mark.parametrize("head_dim", [8, 40, 64, 96, 256])
def test_matches_reference_with_a_cache_of_int8(head_dim: int, dtype: torch.dtype, device: str) -> None:
    check(make_batch(MIXED, 9, 3, head_dim, dtype=dtype).rounded(), device)


@DTYPES
@pytest.mark.parametrize("head_dim", [8, 40, 72, 80, 96, 128, 256])
def test_matches_reference_for_every_head_size(head_dim: int, dtype: torch.dtype, device: str) -> None:
    check(make_batch([(1, 200), (19, 150), (3, 3)], 6, 2, head_dim, dtype=dtype), device)


@pytest.mark.parametrize("block_size", [1, 3, 8, 32, 256])
def test_matches_reference_for_every_block_size(block_size: int, device: str) -> None:
    check(make_batch([(1, 150), (21, 140), (4, 4)], 4, 2, 32, block_size), device)


@pytest.mark.parametrize("seed", range(4))
def test_matches_reference_on_random_mixes(seed: int, device: str) -> None:
    torch.manual_seed(seed)
    contexts = torch.randint(1, 400, (6,)).tolist()
    lengths = [(int(torch.randint(1, min(context, 60) + 1, ())), context) for context in contexts]
    check(make_batch(lengths, 6, 2, 64, dtype=torch.float16), device)


def test_large_scores_do_not_overflow(device: str) -> None:
    batch = make_batch([(1, 300), (20, 40)])
    check(batch._replace(q=batch.q * 200), device)


@DTYPES
def test_a_request_does_not_depend_on_its_neighbours(dtype: torch.dtype, device: str) -> None:
    batch = make_batch(MIXED, dtype=dtype).to(device)
    together = batch.attend()
    for request in range(len(MIXED)):
        rows = slice(int(batch.query_starts[request]), int(batch.query_starts[request + 1]))
        assert torch.equal(together[rows], alone(batch, request).attend())


@DTYPES
def test_a_prompt_may_be_cut_into_chunks_and_single_tokens(dtype: torch.dtype, device: str) -> None:
    batch = make_batch([(300, 300)], dtype=dtype).to(device)
    whole = batch.attend()
    for first, last in [(0, 7), (7, 200), (200, 259), (259, 260), (299, 300)]:
        chunk = batch._replace(
            q=batch.q[first:last].contiguous(),
            query_starts=torch.tensor([0, last - first], dtype=torch.int32, device=device),
            context_lens=torch.tensor([last], dtype=torch.int32, device=device),
        )
        assert torch.equal(chunk.attend(), whole[first:last])


def test_result_does_not_depend_on_the_thread_count() -> None:
    batch = make_batch([(1, 1500), (70, 300)], dtype=torch.float16)
    threads = torch.get_num_threads()
    outs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outs.append(batch.attend())
    torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_tokens(device: str) -> None:
    assert make_batch([(0, 20), (0, 3)]).to(device).attend().shape == (0, 9, 64)
    assert make_batch([]).to(device).attend().shape == (0, 9, 64)


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("block_tables", (1, 1), 99, r"block_tables\[1\] must be in 0\.\.\d+, got 99"),
        ("block_tables", (0, 0), -1, r"block_tables\[0\] must be in 0\.\.\d+, got -1"),
        ("context_lens", (0,), 65, r"context_lens\[0\] must be in 5\.\.64, got 65"),
        ("context_lens", (0,), 4, r"context_lens\[0\] must be in 5\.\.64, got 4"),
        ("query_starts", (0,), 1, r"query_starts must run from 0 to T=6, got 1\.\.6"),
        ("query_starts", (2,), 7, r"query_starts must run from 0 to T=6, got 0\.\.7"),
        ("query_starts", (1,), 8, r"query_starts must not fall, got 8 then 6"),
    ],
)
def test_names_what_leads_outside_the_cache(
    field: str, index: tuple[int, ...], value: int, message: str, device: str
) -> None:
    batch = make_batch([(5, 20), (1, 30)]).to(device)
    assert batch.block_tables.shape == (2, 4)
    getattr(batch, field)[index] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        batch.attend()


def test_names_a_shape_or_dtype_that_does_not_fit(device: str) -> None:
    batch = make_batch([(5, 20), (1, 30)]).to(device)
    with pytest.raises((RuntimeError, ValueError), match=r"q must be \[T, H, 64\] with H a multiple of 3, got"):
        batch._replace(q=batch.q[:, :8].contiguous()).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"query_starts must be \[3\], got \[2\]"):
        batch._replace(query_starts=batch.query_starts[:2]).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"v_cache must be \[\d+, 3, 16, 64\], got"):
        batch._replace(v_cache=batch.v_cache[:2].contiguous()).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"context_lens must be (Int|torch\.int32), got"):
        batch._replace(context_lens=batch.context_lens.long()).attend()


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    torch.library.opcheck(torch.ops.tinyserve.paged_attention, tuple(make_batch([(2, 9), (1, 30)]).to(device)))
