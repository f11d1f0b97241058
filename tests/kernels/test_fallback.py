"""The PyTorch fallback against the fp64 reference: it must give what the kernels give, on any device."""

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import fallback

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
PLACES = pytest.mark.parametrize("place", DEVICES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check(out: Tensor, expected: Tensor, dtype: torch.dtype, least: float = 0.0) -> None:
    assert out.dtype == dtype
    assert reference.relative_error(out.cpu(), expected) < max(TOLERANCE[dtype], least)


@DTYPES
@PLACES
@pytest.mark.parametrize("has_bias", [False, True])
def test_w4a16(has_bias: bool, place: str, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 16, (33, 96), dtype=torch.uint8)
    scales = (torch.rand(33, 3) * 0.02 + 0.01).to(dtype)
    zeros = torch.randint(0, 16, (33, 3), dtype=torch.uint8)
    x, bias = torch.randn(5, 96).to(dtype), torch.randn(33).to(dtype) if has_bias else None
    packed = fallback.w4a16_pack(codes.to(place), scales.to(place), zeros.to(place))
    for multiply in (fallback.w4a16_gemv, fallback.w4a16_gemm):
        y = multiply(x.to(place), *packed, None if bias is None else bias.to(place), 33, 96, 32)
        check(y, reference.w4a16_linear(x, codes, scales, zeros, bias), dtype)


@DTYPES
@PLACES
@pytest.mark.parametrize("group", [32, 64])
def test_rounded_products(group: int, place: str, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 16, (33, 192), dtype=torch.uint8)
    scales = torch.rand(33, 192 // group) * 0.02 + 0.01
    zeros = torch.randint(0, 16, (33, 192 // group), dtype=torch.uint8)
    x, weight = torch.randn(5, 192).to(dtype), torch.randn(33, 192).to(dtype)
    packed = fallback.w4a16_pack(codes.to(place), scales.to(place), zeros.to(place))
    expected = reference.w4a16_linear(reference.int8_rows(x, group), codes, scales, zeros)
    # a value halfway between two steps may go up here and down there
    check(fallback.w4a8_linear(x.to(place), *packed, None, 33, 192, group), expected, dtype, 1e-3)
    expected = reference.linear(reference.int8_rows(x, 64), reference.int8_rows(weight, 64))
    check(fallback.w8a8_linear(x.to(place), *fallback.w8_pack(weight.to(place)), None, 33), expected, dtype, 1e-3)


@DTYPES
@PLACES
def test_linear(place: str, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(5, 64).to(dtype), torch.randn(7, 64).to(dtype), torch.randn(7).to(dtype)
    check(fallback.linear(x.to(place), weight.to(place), bias.to(place)), reference.linear(x, weight, bias), dtype)


@DTYPES
@PLACES
def test_rms_norm(place: str, dtype: torch.dtype) -> None:
    x, weight, residual = (torch.randn(*shape).to(dtype) for shape in ((5, 96), (96,), (5, 96)))
    check(fallback.rms_norm(x.to(place), weight.to(place), 1e-5), reference.rms_norm(x, weight, 1e-5), dtype)
    total = residual.to(place, copy=True)
    y = fallback.rms_norm(x.to(place), weight.to(place), 1e-5, total)
    assert torch.equal(total.cpu(), residual + x)
    check(y, reference.rms_norm(residual + x, weight, 1e-5), dtype)


@DTYPES
@PLACES
def test_layer_norm(place: str, dtype: torch.dtype) -> None:
    x, weight, bias, residual = (torch.randn(*shape).to(dtype) for shape in ((5, 96), (96,), (96,), (5, 96)))
    x += 100
    for given in (bias, None):
        y = fallback.layer_norm(x.to(place), weight.to(place), None if given is None else given.to(place), 1e-5)
        check(y, reference.layer_norm(x, weight, given, 1e-5), dtype)
    total = residual.to(place, copy=True)
    y = fallback.layer_norm(x.to(place), weight.to(place), bias.to(place), 1e-5, total)
    assert torch.equal(total.cpu(), residual + x)
    check(y, reference.layer_norm(residual + x, weight, bias, 1e-5), dtype)


@DTYPES
@PLACES
def test_silu_mul(place: str, dtype: torch.dtype) -> None:
    gate_up = torch.randn(5, 66).to(dtype)
    check(fallback.silu_mul(gate_up.to(place)), reference.silu_mul(gate_up), dtype)


@DTYPES
@PLACES
@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_rope_kv_write(rotary_dim: int, place: str, dtype: torch.dtype) -> None:
    qkv, caches = torch.randn(6, 8 * 16).to(dtype), torch.randn(2, 5, 2, 4, 16).to(dtype)
    positions = torch.randint(0, 30, (6,), dtype=torch.int32)
    slots = torch.tensor([3, -1, 19, 0, 8, -1], dtype=torch.int32)
    cos_sin = torch.rand(30, rotary_dim) * 2 - 1
    expected = reference.rope_kv_write(qkv, positions, cos_sin, slots, caches[0], caches[1], 4)
    qkv, positions, cos_sin, slots = (t.to(place) for t in (qkv, positions, cos_sin, slots))
    k_cache, v_cache = caches.to(place, copy=True)
    q = fallback.rope_kv_write(qkv, positions, cos_sin, slots, k_cache, v_cache, 4)
    for out, want in zip((q, k_cache, v_cache), expected, strict=True):
        check(out, want, dtype)


@DTYPES
@PLACES
@pytest.mark.parametrize("heads", [2, 6])
def test_paged_attention(heads: int, place: str, dtype: torch.dtype) -> None:
    q, caches = torch.randn(9, heads, 16).to(dtype), torch.randn(2, 20, 2, 4, 16).to(dtype)
    tables = torch.randperm(20, dtype=torch.int32)[:18].view(3, 6)
    starts = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
    contexts = torch.tensor([23, 5, 11], dtype=torch.int32)
    expected = reference.paged_attention(q, caches[0], caches[1], tables, starts, contexts, 0.25)
    q, tables, starts, contexts = (t.to(place) for t in (q, tables, starts, contexts))
    k_cache, v_cache = caches.to(place)
    check(fallback.paged_attention(q, k_cache, v_cache, tables, starts, contexts, 0.25), expected, dtype)


@DTYPES
@PLACES
@pytest.mark.parametrize(("stored", "tolerance"), [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.06)])
def test_a_cache_of_8_bits(stored: torch.dtype, tolerance: float, place: str, dtype: torch.dtype) -> None:
    qkv, positions = torch.randn(6, 8 * 16).to(dtype), torch.arange(6, dtype=torch.int32)
    cos_sin, slots = torch.rand(30, 16) * 2 - 1, torch.tensor([0, 1, 2, 3, 4, 5], dtype=torch.int32)
    tables, starts = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([0, 6], dtype=torch.int32)
    exact = torch.zeros(2, 2, 2, 4, 16)
    want_q, *want = reference.rope_kv_write(qkv, positions, cos_sin, slots, exact[0], exact[1], 4)
    codes = torch.zeros(2, 2, 2, 4, 16, device=place).to(stored)
    scales = torch.zeros(2, 2, 2, 4, device=place)
    qkv, positions, cos_sin, slots, tables, starts = (
        t.to(place) for t in (qkv, positions, cos_sin, slots, tables, starts)
    )
    q = fallback.rope_kv_write(qkv, positions, cos_sin, slots, codes[0], codes[1], 4, scales[0], scales[1])
    check(q, want_q, dtype)
    lengths = torch.tensor([6], dtype=torch.int32)
    got = fallback.paged_attention(q, codes[0], codes[1], tables, starts, lengths.to(place), 0.25, scales[0], scales[1])
    attended = reference.paged_attention(q.cpu(), want[0], want[1], tables.cpu(), starts.cpu(), lengths, 0.25)
    assert reference.relative_error(got.cpu(), attended) < tolerance


@PLACES
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize("has_slopes", [False, True])
def test_capped_and_biased_scores(has_slopes: bool, soft_cap: float, window: int, place: str) -> None:
    q, caches = torch.randn(9, 6, 16), torch.randn(2, 20, 2, 4, 16)
    tables = torch.randperm(20, dtype=torch.int32)[:18].view(3, 6)
    starts = torch.tensor([0, 1, 6, 9], dtype=torch.int32)
    contexts = torch.tensor([23, 5, 11], dtype=torch.int32)
    slopes = torch.rand(6) if has_slopes else None
    expected = reference.paged_attention(
        q, caches[0], caches[1], tables, starts, contexts, 0.25, window, soft_cap, slopes
    )
    q, k_cache, v_cache, tables, starts, contexts = (t.to(place) for t in (q, *caches, tables, starts, contexts))
    slopes = None if slopes is None else slopes.to(place)
    lengths = (tables, starts, contexts)
    got = fallback.paged_attention(q, k_cache, v_cache, *lengths, 0.25, None, None, window, soft_cap, slopes)
    check(got, expected, torch.float32)


def test_names_what_does_not_fit() -> None:
    x, weight = torch.zeros(2, 6), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"x must be \[2, 8\], got \[2, 6\]"):
        fallback.linear(x, weight)
    with pytest.raises(ValueError, match=r"gate_up must be \[T, 2\*I\], got \[2, 7\]"):
        fallback.silu_mul(torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"zeros must be uint8 \[4, 2\]"):
        fallback.w4a16_pack(torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 2), torch.zeros(4, 2))
    cache, indices = torch.zeros(3, 1, 4, 8), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots must be in -1\.\.11, got 12"):
        fallback.rope_kv_write(torch.zeros(1, 24), indices, torch.zeros(5, 8), indices + 12, cache, cache, 1)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"block_tables\[0\] must be in 0\.\.2, got 3"):
        fallback.paged_attention(torch.zeros(1, 1, 8), cache, cache, indices[None] + 3, starts, indices + 2, 1.0)
    with pytest.raises(ValueError, match=r"context_lens\[0\] must be in 1\.\.4, got 5"):
        fallback.paged_attention(torch.zeros(1, 1, 8), cache, cache, indices[None], starts, indices + 5, 1.0)
