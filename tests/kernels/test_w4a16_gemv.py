"""w4a16_gemv against the fp64 reference, on every backend this machine has."""

import pytest
import reference
import torch
from kernels.packing import make_quantized
from kernels.products import TOLERANCE, check

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
# one group; ragged n; more than one chunk of k; the whole row one group; the largest group
SHAPES = pytest.mark.parametrize(
    ("n", "k", "group_size"), [(1, 32, 32), (33, 64, 32), (100, 608, 32), (40, 544, 544), (70, 1152, 128)]
)


@DTYPES
@SHAPES
@pytest.mark.parametrize("m", range(1, 9))
def test_matches_reference(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    quantized = make_quantized(n, k, group_size)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    expected = reference.w4a16_linear(x, *quantized, bias)
    check(lambda: ops.w4a16_gemv(x.to(device), weight, bias.to(device)), expected, dtype, device)


@DTYPES
def test_a_real_models_shape(dtype: torch.dtype, device: str) -> None:
    quantized = make_quantized(576, 1536, 64)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    x = torch.randn(1, 1536).to(dtype)
    check(lambda: ops.w4a16_gemv(x.to(device), weight), reference.w4a16_linear(x, *quantized), dtype, device)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_scales_of_other_dtypes(scale_dtype: torch.dtype, device: str) -> None:
    quantized = make_quantized(100, 320, 64, scale_dtype)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    x = torch.randn(3, 320)
    check(lambda: ops.w4a16_gemv(x.to(device), weight), reference.w4a16_linear(x, *quantized), torch.float32, device)


def test_zeros_above_fifteen_are_taken_as_they_are(device: str) -> None:
    codes, scales, zeros = make_quantized(20, 64, 32)
    zeros[:] = 16  # GPTQ stores zero - 1 in four bits
    weight = ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))
    x = torch.randn(1, 64)
    expected = reference.w4a16_linear(x, codes, scales, zeros)
    check(lambda: ops.w4a16_gemv(x.to(device), weight), expected, torch.float32, device)


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(100, 608, 32)))
    x = torch.randn(8, 608).to(dtype).to(device)
    together = ops.w4a16_gemv(x, weight)
    for m in range(1, 8):
        assert torch.equal(ops.w4a16_gemv(x[:m], weight), together[:m])


def test_result_does_not_depend_on_the_thread_count() -> None:
    weight = ops.w4a16_pack(*make_quantized(500, 1024, 64))
    x, threads = torch.randn(2, 1024), torch.get_num_threads()
    outs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outs.append(ops.w4a16_gemv(x, weight))
    torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_rows(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    assert ops.w4a16_gemv(torch.empty(0, 64, device=device), weight).shape == (0, 40)


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x = torch.zeros(2, 64, device=device)
    with pytest.raises(RuntimeError, match=r"w4a16_gemv takes up to 8 rows, got x \[9, 64\]"):
        ops.w4a16_gemv(torch.zeros(9, 64, device=device), weight)
    with pytest.raises(RuntimeError, match=r"x must be \[M, 64\], got \[2, 32\]"):
        ops.w4a16_gemv(x[:, :32].contiguous(), weight)
    with pytest.raises(RuntimeError, match=r"x must be \[M, K\], got \[64\]"):
        ops.w4a16_gemv(x[0], weight)
    with pytest.raises(RuntimeError, match="x must be contiguous"):
        ops.w4a16_gemv(torch.zeros(64, 2, device=device).T, weight)
    with pytest.raises(RuntimeError, match=r"bias must be \[40\], got \[39\]"):
        ops.w4a16_gemv(x, weight, torch.zeros(39, device=device))
    with pytest.raises(RuntimeError, match="bias must be Float, got Half"):
        ops.w4a16_gemv(x, weight, torch.zeros(40, device=device).half())
    with pytest.raises(RuntimeError, match="x must be float16, bfloat16 or float32, got Int"):
        ops.w4a16_gemv(x.int(), weight)


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x, bias = torch.randn(2, 64, device=device), torch.randn(40, device=device)
    torch.library.opcheck(torch.ops.tinyserve.w4a16_gemv, (x, weight.qweight, weight.qparams, bias, 40, 64, 32))
