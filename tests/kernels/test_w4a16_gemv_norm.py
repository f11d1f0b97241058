"""w4a16_gemv of x's RMSNorm, which CUDA computes in the same kernel, against the fp64 reference on every backend."""

from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from kernels.packing import make_quantized
from kernels.products import TOLERANCE, check
from torch import Tensor

from tinyserve import fallback, ops

OP = "w4a16_gemv"
EPS = 1e-2  # large beside what x is here, so that leaving it out is seen

SIXTEEN_BITS = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
# every group size; ragged n; k that ends within a unit of 128, one of them within a block of 64
SHAPES = pytest.mark.parametrize(
    ("n", "k", "group_size"), [(15, 32, 32), (100, 608, 32), (17, 320, 64), (40, 544, 544), (70, 1152, 128)]
)


@pytest.fixture
def set_gpu(device: str, is_emulated: bool) -> Iterator[Callable[[int, int], None]]:
    """Chooses the multiprocessors and the compute capability of the emulated GPU."""
    if not is_emulated:
        pytest.skip("only the emulator can be another GPU")
    yield torch.ops.tinyserve_emulated.set_gpu
    torch.ops.tinyserve_emulated.set_gpu(4, 90)


def make(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ops.PackedWeight]:
    """Rows of very different sizes, as of a residual stream, and a weight; on `device`."""
    x = torch.randn(m, k) * torch.logspace(-1, 2, 8)[torch.randperm(8)[:m], None]
    codes, scales, zeros = (t.to(device) for t in make_quantized(n, k, group_size))
    return x.to(dtype).to(device), ops.w4a16_pack(codes, scales.bfloat16().half(), zeros, dtype=dtype)


def expected_of(x: Tensor, weight: ops.PackedWeight, norm_weight: Tensor) -> Tensor:
    dense = ops.w4a16_dequantize(weight, torch.float32).cpu()  # of exact scales: rounds nothing
    return reference.linear(reference.rms_norm(x.cpu(), norm_weight, EPS), dense)


def check_norm(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    x, weight = make(m, n, k, group_size, dtype, device)
    norm_weight = (torch.randn(k) * 0.3 + 1).to(dtype)
    expected, on_device = expected_of(x, weight, norm_weight), norm_weight.to(device)
    check(lambda: ops.w4a16_gemv(x, weight, norm_weight=on_device, eps=EPS), expected, dtype, device)


@SIXTEEN_BITS
@SHAPES
@pytest.mark.parametrize("m", range(1, 9))
def test_matches_reference(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    check_norm(m, n, k, group_size, dtype, device)


def test_matches_reference_in_fp32(device: str, is_cuda: bool) -> None:
    if is_cuda:
        pytest.skip("on CUDA only 16 bits have a kernel")
    check_norm(3, 40, 544, 544, torch.float32, device)


@SIXTEEN_BITS
@pytest.mark.parametrize("m", [1, 5])
def test_with_all_that_follows_the_product(m: int, dtype: torch.dtype, device: str) -> None:
    x, weight = make(m, 112, 608, 32, dtype, device)
    norm_weight, bias, residual = (torch.randn(size).to(dtype) for size in ((608,), (112,), (m, 56)))
    product = expected_of(x, weight, norm_weight) + bias.double()
    expected = reference.silu_mul_of_tiles(product) + residual.double()
    norm_weight, bias, residual = (t.to(device) for t in (norm_weight, bias, residual))
    check(lambda: ops.w4a16_gemv(x, weight, bias, residual, True, norm_weight, EPS), expected, dtype, device)


@SIXTEEN_BITS
@SHAPES
def test_rounds_as_the_norms_own_kernel(n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    """The order of the sum of squares may exchange a rounding here and there."""
    x, weight = make(8, n, k, group_size, dtype, device)
    norm_weight = torch.randn(k).to(dtype).to(device)
    together = ops.w4a16_gemv(x, weight, norm_weight=norm_weight, eps=EPS)
    apart = ops.w4a16_gemv(ops.rms_norm(x, norm_weight, EPS), weight)
    assert (together == apart).double().mean() > 0.9
    assert reference.relative_error(together, apart) < TOLERANCE[dtype] / 4


@SIXTEEN_BITS
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    x, weight = make(8, 100, 608, 32, dtype, device)
    norm_weight = torch.randn(608).to(dtype).to(device)
    together = ops.w4a16_gemv(x, weight, norm_weight=norm_weight, eps=EPS)
    for m in range(1, 8):
        assert torch.equal(ops.w4a16_gemv(x[:m], weight, norm_weight=norm_weight, eps=EPS), together[:m])
    x[3] = torch.nan
    with_nan = ops.w4a16_gemv(x, weight, norm_weight=norm_weight, eps=EPS)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(with_nan[others], together[others])
    assert with_nan[3].isnan().all()


@SIXTEEN_BITS
@pytest.mark.parametrize(
    ("m", "n", "k", "multiprocessors"), [(3, 1100, 64, 1), (3, 100, 576, 50), (2, 60, 16448, 3), (2, 60, 16448, 9)]
)
def test_any_number_of_multiprocessors(
    m: int,
    n: int,
    k: int,
    multiprocessors: int,
    dtype: torch.dtype,
    device: str,
    set_gpu: Callable[[int, int], None],
) -> None:
    """More tiles than sums fit in one round; CTAs with nothing to do; tiles that CTAs share: each needs whole rows."""
    set_gpu(multiprocessors, 90)
    check_norm(m, n, k, 64, dtype, device)


@SIXTEEN_BITS
@pytest.mark.parametrize("m", [6, 7, 8])
def test_rows_that_do_not_fit_shared_memory(
    m: int, dtype: torch.dtype, device: str, set_gpu: Callable[[int, int], None]
) -> None:
    """Six rows fit beside the norm's weight, seven without it, eight not at all."""
    set_gpu(2, 86)
    check_norm(m, 33, 6336, 32, dtype, device)


@SIXTEEN_BITS
def test_nothing_beside_the_rows_is_read(dtype: torch.dtype, device: str) -> None:
    for m, offset in [(1, 8), (3, 8), (2, 3)]:  # also at addresses that no vector load can take
        rows, weight = make(m, 40, 160, 32, dtype, device)
        around = torch.full((offset + m * 160 + 200,), float("nan"), dtype=dtype, device=device)
        x = around[offset : offset + m * 160].view(m, 160).copy_(rows)
        norm_around = torch.full((offset + 160 + 200,), float("nan"), dtype=dtype, device=device)
        norm_weight = norm_around[offset : offset + 160].copy_(torch.randn(160))
        expected = expected_of(rows, weight, norm_weight.cpu())
        out = check(
            lambda x=x, weight=weight, norm=norm_weight: ops.w4a16_gemv(x, weight, norm_weight=norm, eps=EPS),  # type: ignore[misc]
            expected,
            dtype,
            device,
        )
        assert out.isfinite().all()


@pytest.mark.parametrize("rows", [8, 9])
def test_the_linear_takes_any_number_of_rows(rows: int, device: str) -> None:
    x, weight = make(8, 48, 96, 32, torch.float16, device)
    x, norm_weight = x.repeat(2, 1)[:rows], torch.randn(96).half().to(device)
    expected = expected_of(x, weight, norm_weight.cpu())
    got = check(lambda: ops.w4a16_linear(x, weight, norm_weight=norm_weight, eps=EPS), expected, torch.float16, device)
    thrice = ops.w4a16_linear(x[None].expand(3, -1, -1), weight, norm_weight=norm_weight, eps=EPS)
    assert thrice.shape == (3, rows, 48)
    assert reference.relative_error(thrice[1], got) < 1e-3


def test_the_fallback_norms_too(device: str) -> None:
    codes, scales, zeros = make_quantized(48, 96, 32)
    x, norm_weight = torch.randn(3, 96).half().to(device), torch.randn(96).half().to(device)
    packed = fallback.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))
    got = fallback.w4a16_gemv(x, *packed, None, 48, 96, 32, norm_weight=norm_weight, eps=EPS)
    normed = reference.rms_norm(x.cpu(), norm_weight.cpu(), EPS)
    expected = reference.w4a16_linear(normed, codes, scales, zeros)
    assert reference.relative_error(got.cpu(), expected) < TOLERANCE[torch.float16]


def test_names_what_does_not_fit(device: str) -> None:
    x, weight = make(2, 40, 64, 32, torch.float16, device)
    with pytest.raises(RuntimeError, match=r"norm_weight must be \[64\], got \[63\]"):
        ops.w4a16_gemv(x, weight, norm_weight=torch.ones(63, device=device).half())
    with pytest.raises(RuntimeError, match="norm_weight must be Half, got Float"):
        ops.w4a16_gemv(x, weight, norm_weight=torch.ones(64, device=device))


def test_schema_and_fake_agree_with_the_kernel(device: str, is_emulated: bool) -> None:
    if is_emulated:
        pytest.skip("the emulated ops have no fakes")
    x, weight = make(2, 48, 64, 32, torch.float16, device)
    norm_weight = torch.randn(64).half().to(device)
    arguments = (x, weight.qweight, weight.qparams, None, 48, 64, 32, None, True, norm_weight, EPS)
    torch.library.opcheck(torch.ops.tinyserve.w4a16_gemv, arguments)
