"""paged_attention against the fp64 reference, on every device this machine has.

The emulator takes shorter contexts, but every kernel: all sizes of heads, decoding and prefill, each kind of cache.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
HEADS = pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (8, 1), (14, 2), (20, 1)])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
CODES = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "float8"])
RANDOM_MIXES = int(os.environ.get("TINYSERVE_RANDOM_MIXES", "200" if torch.cuda.is_available() else "10"))
# (queries, context) per request: first prefill, prefill behind a cached prefix, decode; lengths beside every tile edge
MIXED = [(1, 1), (1, 17), (5, 5), (1, 300), (33, 33), (7, 130), (2, 257), (1, 256), (40, 257), (0, 64), (1, 1031)]
SMALL = [(1, 1), (1, 63), (5, 5), (1, 64), (33, 33), (7, 65), (2, 130), (0, 64), (12, 70), (1, 200)]


@pytest.fixture
def mixed(is_emulated: bool) -> list[tuple[int, int]]:
    return SMALL if is_emulated else MIXED


@pytest.fixture
def exact_dtype(is_cuda: bool) -> torch.dtype:
    """The most exact one that has a kernel."""
    return torch.float16 if is_cuda else torch.float32


@pytest.fixture(autouse=True)
def _kernels_there_are(request: pytest.FixtureRequest) -> None:
    """Skips what a backend refuses, and what a fallback would compute."""
    parameters = getattr(request.node, "callspec", None) and request.node.callspec.params
    if not parameters or "device" not in parameters:
        return
    on_cpu = parameters["device"].startswith("cpu")
    if parameters.get("dtype") == torch.float32 and not on_cpu:
        pytest.skip("CUDA has no kernel for float32")
    if parameters.get("codes") == torch.float8_e4m3fn and on_cpu:
        pytest.skip("the CPU has no kernel for float8")


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
    window: int = 0
    soft_cap: float = 0.0
    alibi_slopes: Tensor | None = None

    def to(self, device: str) -> "Batch":
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(**tensors)

    def rounded(self, dtype: torch.dtype = torch.int8) -> "Batch":
        """The same with caches of 8 bits, and what is poisoned poisoned in its scale."""
        (k_codes, k_scales), (v_codes, v_scales) = (rounded(cache, dtype) for cache in (self.k_cache, self.v_cache))
        return self._replace(k_cache=k_codes, v_cache=v_codes, k_scales=k_scales, v_scales=v_scales)

    def expected(self) -> Tensor:
        k_cache, v_cache = self.k_cache, self.v_cache
        if self.k_scales is not None and self.v_scales is not None:
            k_cache = k_cache.float() * self.k_scales[..., None]
            v_cache = v_cache.float() * self.v_scales[..., None]
        lengths = (self.block_tables, self.query_starts, self.context_lens)
        scores = (self.window, self.soft_cap, self.alibi_slopes)
        return reference.paged_attention(self.q, k_cache, v_cache, *lengths, self.scale, *scores)

    def attend(self) -> Tensor:
        return ops.paged_attention(*self)


def rounded(cache: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A cache [blocks, Hkv, S, D] in 8 bits, and its scales."""
    scales = cache.float().abs().amax(-1) / (127 if dtype == torch.int8 else 448)
    codes = (cache.float() / scales[..., None]).nan_to_num()
    return (codes.round() if dtype == torch.int8 else codes.clamp(-448, 448)).to(dtype), scales


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


def check(batch: Batch, device: str) -> float:
    """Returns the error."""
    out = batch.to(device).attend()
    assert out.shape == batch.q.shape
    assert out.dtype == batch.q.dtype
    error = reference.relative_error(out.cpu(), batch.expected())
    assert error < TOLERANCE[batch.q.dtype]
    return error


def check_same(out: Tensor, expected: Tensor, is_cuda: bool) -> None:
    """The same bits; on CUDA, where a context is cut by what else there is to do, the same to rounding."""
    if is_cuda:
        assert reference.relative_error(out.cpu(), expected.cpu()) < TOLERANCE[out.dtype]
    else:
        assert torch.equal(out, expected)


@DTYPES
@HEADS
def test_matches_reference_on_a_mixed_batch(
    heads: int, kv_heads: int, dtype: torch.dtype, mixed: list[tuple[int, int]], device: str
) -> None:
    check(make_batch(mixed, heads, kv_heads, dtype=dtype), device)


@DTYPES
def test_matches_reference_when_all_requests_decode(dtype: torch.dtype, device: str) -> None:
    check(make_batch([(1, n) for n in (1, 15, 64, 65, 127, 200, 31)], 12, 2, dtype=dtype), device)


@DTYPES
@CODES
@pytest.mark.parametrize("head_dim", [16, 48, 64, 96, 256])
def test_matches_reference_with_a_cache_of_8_bits(
    head_dim: int, codes: torch.dtype, dtype: torch.dtype, mixed: list[tuple[int, int]], device: str
) -> None:
    check(make_batch(mixed if head_dim == 64 else mixed[-4:], 6, 2, head_dim, dtype=dtype).rounded(codes), device)


@DTYPES
@pytest.mark.parametrize("head_dim", [8, 40])
def test_matches_reference_with_a_cache_of_int8_and_odd_heads(
    head_dim: int, dtype: torch.dtype, mixed: list[tuple[int, int]], device: str, is_cuda: bool
) -> None:
    batch = make_batch(mixed, 9, 3, head_dim, dtype=dtype).rounded()
    if is_cuda and device == "cpu":  # on a GPU the fallback computes
        with pytest.raises(RuntimeError, match=f"multiple of 16 for a cache of 8 bits on CUDA, got {head_dim}"):
            batch.attend()
    else:
        check(batch, device)


@DTYPES
@pytest.mark.parametrize("head_dim", [8, 40, 72, 80, 96, 128, 256])
def test_matches_reference_for_every_head_size(head_dim: int, dtype: torch.dtype, device: str) -> None:
    check(make_batch([(1, 200), (19, 150), (3, 3)], 6, 2, head_dim, dtype=dtype), device)


@pytest.mark.parametrize("block_size", [1, 3, 8, 32, 256])
def test_matches_reference_for_every_block_size(block_size: int, exact_dtype: torch.dtype, device: str) -> None:
    check(make_batch([(1, 150), (21, 140), (4, 4)], 4, 2, 32, block_size, exact_dtype), device)


@pytest.mark.parametrize("window", [1, 5, 64, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (14, 2)])
def test_matches_reference_with_a_sliding_window(
    heads: int, kv_heads: int, window: int, mixed: list[tuple[int, int]], exact_dtype: torch.dtype, device: str
) -> None:
    check(make_batch(mixed, heads, kv_heads, dtype=exact_dtype)._replace(window=window), device)


def test_tiles_before_the_window_are_not_read(exact_dtype: torch.dtype, device: str) -> None:
    lengths = [(1, 290), (1, 84), (5, 550)]
    batch = make_batch(lengths, 6, 2, dtype=exact_dtype)._replace(window=20)
    poisoned = next(iter(set(range(batch.k_cache.shape[0])) - set(batch.block_tables.flatten().tolist())))
    for request, (queries, context) in enumerate(lengths):
        unseen = (context - queries - 19) // 256 * 256  # keys of whole tiles
        batch.block_tables[request, : unseen // 16] = poisoned  # where all is NaN
    check(batch, device)


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
@pytest.mark.parametrize("has_slopes", [False, True])
def test_matches_reference_with_capped_and_biased_scores(
    has_slopes: bool, soft_cap: float, window: int, exact_dtype: torch.dtype, device: str
) -> None:
    batch = make_batch([(1, 200), (70, 70), (3, 90)], 6, 2, dtype=exact_dtype)
    slopes = 2.0 ** -torch.arange(1, 7) if has_slopes else None
    check(batch._replace(soft_cap=soft_cap, window=window, alibi_slopes=slopes, q=batch.q * 3), device)


@pytest.mark.parametrize("seed", range(4))
def test_matches_reference_on_random_mixes(seed: int, device: str) -> None:
    torch.manual_seed(seed)
    contexts = torch.randint(1, 400, (6,)).tolist()
    lengths = [(int(torch.randint(1, min(context, 60) + 1, ())), context) for context in contexts]
    check(make_batch(lengths, 6, 2, 64, dtype=torch.float16), device)


def test_matches_reference_on_random_shapes(device: str, is_cuda: bool) -> None:
    """Prints the largest errors: TINYSERVE_RANDOM_MIXES=200 python -m pytest -rP -k random_shapes <this file>."""
    largest: dict[tuple[torch.dtype, torch.dtype], float] = {}

    def one_of(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), ()))]

    for _ in range(RANDOM_MIXES):
        kv_heads, group, head_dim = one_of(1, 2, 3), one_of(1, 3, 4, 7, 8), one_of(32, 64, 80, 128, 256)
        contexts = torch.randint(1, 1000 if device == "cuda" else 150, (one_of(1, 3, 5),)).tolist()
        most = one_of(1, 3, 40, 400)
        lengths = [(int(torch.randint(1, min(context, most) + 1, ())), context) for context in contexts]
        dtype = [torch.float16, torch.bfloat16][one_of(0, 1)]
        batch = make_batch(lengths, kv_heads * group, kv_heads, head_dim, one_of(1, 8, 16, 64), dtype)
        cache = one_of(0, 1, 2)
        if cache > 0:
            batch = batch.rounded(torch.float8_e4m3fn if cache == 2 and is_cuda else torch.int8)
        error = check(batch._replace(window=one_of(0, 0, 33)), device)
        kind = (dtype, batch.k_cache.dtype)
        largest[kind] = max(error, largest.get(kind, 0.0))
    for (activations, cache_dtype), error in largest.items():
        print(f"{activations} with a cache of {cache_dtype}: {error:.2e}")


def test_large_scores_do_not_overflow(exact_dtype: torch.dtype, device: str) -> None:
    batch = make_batch([(1, 300), (20, 40)], dtype=exact_dtype)
    check(batch._replace(q=batch.q * 200), device)


@DTYPES
def test_a_request_does_not_depend_on_its_neighbours(
    dtype: torch.dtype, mixed: list[tuple[int, int]], device: str, is_cuda: bool
) -> None:
    batch = make_batch(mixed, dtype=dtype).to(device)
    together = batch.attend()
    for request, (queries, _) in enumerate(mixed):
        if queries > 0:
            rows = slice(int(batch.query_starts[request]), int(batch.query_starts[request + 1]))
            check_same(alone(batch, request).attend(), together[rows], is_cuda)


@DTYPES
def test_a_prompt_may_be_cut_into_chunks_and_single_tokens(
    dtype: torch.dtype, device: str, is_cuda: bool, is_emulated: bool
) -> None:
    length = 150 if is_emulated else 300
    batch = make_batch([(length, length)], dtype=dtype).to(device)
    whole = batch.attend()
    cuts = [(0, 7), (7, 100), (100, 129), (129, 130), (149, 150)]
    for first, last in cuts if is_emulated else [*cuts, (7, 200), (200, 259), (259, 260), (299, 300)]:
        chunk = batch._replace(
            q=batch.q[first:last].contiguous(),
            query_starts=torch.tensor([0, last - first], dtype=torch.int32, device=device),
            context_lens=torch.tensor([last], dtype=torch.int32, device=device),
        )
        check_same(chunk.attend(), whole[first:last], is_cuda)


@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("multiprocessors", [1, 2, 5, 40])
def test_any_number_of_multiprocessors_gives_the_same(
    multiprocessors: int,
    capability: int,
    device: str,
    emulated_gpu: Callable[[int, int], None],
) -> None:
    emulated_gpu(multiprocessors, capability)
    batch = make_batch([(1, 500), (1, 3), (40, 200), (0, 9), (2, 190)], 8, 2, dtype=torch.float16)
    check(batch, device)
    assert torch.equal(batch.attend(), batch.attend())
    check(make_batch([(1, 700), (1, 3)], 8, 2, 128, dtype=torch.float16)._replace(window=600), device)


@pytest.mark.parametrize("lengths", [[(1, 70), (3, 9), (0, 5)], [(0, 4), (1, 1), (9, 80)]])
def test_lengths_that_only_the_memory_knows_may_be_any(lengths: list[tuple[int, int]], device: str) -> None:
    """As many requests as tokens, or more, and still one of several queries."""
    check(make_batch(lengths + [(0, 8)] * 8, 4, 2, dtype=torch.float16), device)


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


def test_no_tokens(exact_dtype: torch.dtype, device: str) -> None:
    assert make_batch([(0, 20), (0, 3)], dtype=exact_dtype).to(device).attend().shape == (0, 9, 64)
    assert make_batch([], dtype=exact_dtype).to(device).attend().shape == (0, 9, 64)


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
    field: str, index: tuple[int, ...], value: int, message: str, exact_dtype: torch.dtype, device: str
) -> None:
    if device == "cuda":
        pytest.skip("what lies in a GPU's memory is not looked at")
    batch = make_batch([(5, 20), (1, 30)], dtype=exact_dtype)
    assert batch.block_tables.shape == (2, 4)
    getattr(batch, field)[index] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        batch.attend()


def test_names_a_shape_or_dtype_that_does_not_fit(exact_dtype: torch.dtype, device: str) -> None:
    batch = make_batch([(5, 20), (1, 30)], dtype=exact_dtype).to(device)
    with pytest.raises((RuntimeError, ValueError), match=r"q must be \[T, H, 64\] with H a multiple of 3, got"):
        batch._replace(q=batch.q[:, :8].contiguous()).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"query_starts must be \[3\], got \[2\]"):
        batch._replace(query_starts=batch.query_starts[:2]).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"v_cache must be \[\d+, 3, 16, 64\], got"):
        batch._replace(v_cache=batch.v_cache[:2].contiguous()).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"context_lens must be (Int|torch\.int32), got"):
        batch._replace(context_lens=batch.context_lens.long()).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"window must be 0 \(none\) or positive, got -1"):
        batch._replace(window=-1).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"soft_cap must be 0 \(none\) or positive, got -2"):
        batch._replace(soft_cap=-2.0).attend()
    with pytest.raises((RuntimeError, ValueError), match=r"alibi_slopes must be .*\[9\], got .*\[8\]"):
        batch._replace(alibi_slopes=torch.ones(8, device=device)).attend()


def test_schema_and_fake_agree_with_the_kernel(exact_dtype: torch.dtype, device: str) -> None:
    batch = make_batch([(2, 9), (1, 30)], dtype=exact_dtype).to(device)
    torch.library.opcheck(torch.ops.tinyserve.paged_attention, tuple(batch))
