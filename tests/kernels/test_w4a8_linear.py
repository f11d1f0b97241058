"""w4a8_linear against the fp64 reference with rounded activations, on every backend this machine has."""

import pytest
import reference
import torch
from kernels.packing import make_quantized
from kernels.products import TOLERANCE, poison_memory

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
# one group; ragged n; groups of 32 and of a whole row, which x divides by 128 and by 32; the largest group
SHAPES = pytest.mark.parametrize(
    ("n", "k", "group_size"),
    [(1, 32, 32), (33, 64, 32), (100, 608, 32), (40, 544, 544), (65, 640, 640), (70, 1152, 128)],
)


Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check(x: torch.Tensor, quantized: Quantized, bias: torch.Tensor | None, device: str) -> None:
    """Every element's part in the error is small: that of the dtype, and of a value rounded up here and down there."""
    n, group_size = quantized[0].shape[0], x.shape[1] // quantized[1].shape[1]
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    poison_memory((len(x), n), x.dtype, device)
    actual = ops.w4a8_linear(x.to(device), weight, None if bias is None else bias.to(device)).cpu()
    rounded = reference.int8_rows(x, next(size for size in (128, 64, 32) if group_size % size == 0))
    expected = reference.w4a16_linear(rounded, *quantized, bias)
    assert (actual.shape, actual.dtype) == ((len(x), n), x.dtype)
    assert reference.relative_error(actual, expected) <= max(TOLERANCE[x.dtype], 1e-3)


@DTYPES
@SHAPES
@pytest.mark.parametrize("m", [1, 2, 3, 5, 12, 13, 40])
def test_matches_reference(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, device: str) -> None:
    x, bias = torch.randn(m, k).to(dtype), torch.randn(n).to(dtype)
    check(x, make_quantized(n, k, group_size), bias, device)


@DTYPES
def test_is_near_the_exact_product(dtype: torch.dtype, device: str) -> None:
    quantized = make_quantized(96, 1024, 64)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    x = torch.randn(4, 1024).to(dtype)
    actual = ops.w4a8_linear(x.to(device), weight).cpu()
    assert reference.relative_error(actual, reference.w4a16_linear(x, *quantized)) < 1.5e-2


def test_zeros_above_fifteen_are_taken_as_they_are(device: str) -> None:
    codes, scales, zeros = make_quantized(20, 64, 32)
    zeros[:] = 200
    check(torch.randn(3, 64), (codes, scales, zeros), None, device)


def test_extreme_codes_do_not_saturate(device: str) -> None:
    codes = torch.full((32, 128), 15, dtype=torch.uint8)
    scales, zeros = torch.ones(32, 2), torch.zeros(32, 2, dtype=torch.uint8)
    weight = ops.w4a16_pack(*(t.to(device) for t in (codes, scales, zeros)))
    for value in (1.0, -1.0):
        y = ops.w4a8_linear(torch.full((2, 128), value, device=device), weight).cpu()
        torch.testing.assert_close(y, torch.full((2, 32), value * 15 * 128))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(bad: float, device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 128, 64)))
    x = torch.randn(3, 128)
    x[1, 70] = bad
    y = ops.w4a8_linear(x.to(device), weight).cpu()
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


def test_zero_rows_give_the_bias(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 128, 64)))
    bias = torch.randn(40)
    y = ops.w4a8_linear(torch.zeros(3, 128, device=device), weight, bias.to(device)).cpu()
    assert torch.equal(y, bias.expand(3, 40))


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(100, 608, 32)))
    x = torch.randn(30, 608).to(dtype).to(device)
    together = ops.w4a8_linear(x, weight)
    for m in (1, 2, 7, 12, 13, 29):
        assert torch.equal(ops.w4a8_linear(x[:m], weight), together[:m])


def test_result_does_not_depend_on_the_thread_count() -> None:
    weight = ops.w4a16_pack(*make_quantized(500, 1024, 64))
    x, threads = torch.randn(20, 1024), torch.get_num_threads()
    outs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        outs.append(ops.w4a8_linear(x, weight))
    torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_no_rows(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    assert ops.w4a8_linear(torch.empty(0, 64, device=device), weight).shape == (0, 40)


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    with pytest.raises(RuntimeError, match=r"x must be \[M, 64\], got \[2, 32\]"):
        ops.w4a8_linear(torch.zeros(2, 32, device=device), weight)


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    x, bias = torch.randn(2, 64, device=device), torch.randn(40, device=device)
    torch.library.opcheck(torch.ops.tinyserve.w4a8_linear, (x, weight.qweight, weight.qparams, bias, 40, 64, 32))
