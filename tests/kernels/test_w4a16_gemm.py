"""w4a16_gemm against the fp64 reference, on every backend this machine has."""

import pytest
import reference
import torch
from kernels.packing import is_for_tensor_cores, make_quantized
from kernels.products import TOLERANCE, check

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])


@pytest.fixture(autouse=True)
def _only_what_has_a_kernel(request: pytest.FixtureRequest, is_cuda: bool) -> None:
    if is_cuda and request.node.callspec.params.get("dtype") == torch.float32:
        pytest.skip("on CUDA only 16 bits have a kernel")


@DTYPES
@pytest.mark.parametrize(("n", "k", "group_size"), [(1, 32, 32), (100, 608, 32), (40, 544, 544), (70, 1152, 128)])
@pytest.mark.parametrize("m", [1, 7, 13, 250])  # one row, tails of every block of rows, more than one block
def test_matches_reference(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    codes, scales, zeros = make_quantized(n, k, group_size)
    quantized = (codes, scales.bfloat16().half(), zeros)  # both dtypes of activations hold these scales exactly
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    expected = reference.w4a16_linear(x, *quantized, bias)
    check(lambda: ops.w4a16_gemm(x.to(device), weight, bias.to(device)), expected, dtype, device)


@DTYPES
def test_a_real_models_shape(dtype: torch.dtype, device: str) -> None:
    codes, scales, zeros = make_quantized(576, 1536, 64)
    quantized = (codes, scales.bfloat16().half(), zeros)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x = torch.randn(64, 1536).to(dtype)
    check(lambda: ops.w4a16_gemm(x.to(device), weight), reference.w4a16_linear(x, *quantized), dtype, device)


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str, is_cuda: bool) -> None:
    """Nor on which of the two ops computes it: a request answers the same alone and in a batch."""
    if is_cuda:
        pytest.skip("the GPU's kernels sum in an order that depends on their tiles")
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(100, 608, 32)))
    x = torch.randn(250, 608).to(dtype).to(device)
    together = ops.w4a16_gemm(x, weight)
    for m in (1, 2, 6, 7, 12, 240, 241):
        assert torch.equal(ops.w4a16_gemm(x[:m], weight), together[:m])
    for m in range(1, 9):
        assert torch.equal(ops.w4a16_gemv(x[:m], weight), together[:m])


def test_linear_takes_any_leading_dimensions(device: str) -> None:
    quantized = make_quantized(48, 64, 32)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    for leading in [(), (3,), (2, 5), (2, 0), (2, 3, 4)]:
        x, residual = torch.randn(*leading, 64), torch.randn(*leading, 48)
        out = ops.w4a16_linear(x.to(device), weight, residual=residual.to(device))
        assert out.shape == (*leading, 48)
        expected = reference.w4a16_linear(x.view(-1, 64), *quantized).view(*leading, 48) + residual
        torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-5, atol=1e-5)


@DTYPES
@pytest.mark.parametrize("m", [3, 21])
@pytest.mark.parametrize("silu_mul", [False, True])
def test_what_follows_the_product(silu_mul: bool, m: int, dtype: torch.dtype, device: str) -> None:
    codes, scales, zeros = make_quantized(112, 96, 32)
    quantized = (codes, scales.bfloat16().half(), zeros)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x, bias = torch.randn(m, 96).to(dtype), torch.randn(112).to(dtype)
    residual = torch.randn(m, 56 if silu_mul else 112).to(dtype)
    expected = reference.w4a16_linear(x, *quantized, bias)
    if silu_mul:
        expected = reference.silu_mul_of_tiles(expected)
    here = [t.to(device) for t in (x, bias, residual)]
    check(lambda: ops.w4a16_gemm(here[0], weight, here[1], here[2], silu_mul), expected + residual, dtype, device)
    check(lambda: ops.w4a16_gemm(here[0], weight, here[1], None, silu_mul), expected, dtype, device)


def test_no_rows_and_no_columns(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    assert ops.w4a16_gemm(torch.empty(0, 64, device=device).half(), weight).shape == (0, 40)
    nothing = ops.w4a16_pack(*(t.to(device) for t in make_quantized(0, 64, 32)))
    assert ops.w4a16_gemm(torch.ones(9, 64, device=device).half(), nothing).shape == (9, 0)


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x = torch.zeros(20, 64, device=device).half()
    with pytest.raises(RuntimeError, match=r"x must be \[M, 64\], got \[20, 32\]"):
        ops.w4a16_gemm(x[:, :32].contiguous(), weight)
    with pytest.raises(RuntimeError, match=r"bias must be \[40\], got \[41\]"):
        ops.w4a16_gemm(x, weight, torch.zeros(41, device=device).half())
    with pytest.raises(RuntimeError, match=r"residual must be \[20, 40\], got \[20, 41\]"):
        ops.w4a16_gemm(x, weight, residual=torch.zeros(20, 41, device=device).half())
    with pytest.raises(RuntimeError, match="silu_mul needs n in tiles of 16, got n=40"):
        ops.w4a16_gemm(x, weight, silu_mul=True)
    with pytest.raises(RuntimeError, match=r"config.*got (config=)?1000"):
        ops.w4a16_gemm(x, weight, config=1000)
    if is_for_tensor_cores(weight):
        return
    with pytest.raises(RuntimeError, match=r"qweight must be \[3, 8, 32\], got \[2, 8, 32\]"):
        torch.ops.tinyserve.w4a16_gemm(x, weight.qweight, weight.qparams, None, 65, 64, 32)
    with pytest.raises(RuntimeError, match=r"qparams must be \[2, 1, 96\], got \[2, 2, 96\]"):
        torch.ops.tinyserve.w4a16_gemm(x, weight.qweight, weight.qparams, None, 40, 64, 64)


def test_schema_and_fake_agree_with_the_kernel(device: str, is_cuda: bool) -> None:
    if is_cuda and device == "cpu":
        pytest.skip("the emulated ops have no fakes")
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x = torch.randn(20, 64, device=device).half()
    torch.library.opcheck(torch.ops.tinyserve.w4a16_gemm, (x, weight.qweight, weight.qparams, None, 40, 64, 32))
