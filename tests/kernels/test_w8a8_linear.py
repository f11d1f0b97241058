"""w8a8_linear against the fp64 reference with both sides rounded, on every backend this machine has."""

import pytest
import reference
import torch
from kernels.products import TOLERANCE, poison_memory
from torch import Tensor

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])


def check(x: Tensor, weight: Tensor, bias: Tensor | None, device: str) -> None:
    """Rounding may go up here and down there where a value lies halfway: hence 1e-3 at least."""
    packed = ops.w8_pack(weight.to(device))
    poison_memory((len(x), len(weight)), x.dtype, device)
    actual = ops.w8a8_linear(x.to(device), packed, None if bias is None else bias.to(device)).cpu()
    group = 64 if x.shape[1] % 64 == 0 else 32
    expected = reference.linear(reference.int8_rows(x, group), reference.int8_rows(weight, group), bias)
    assert (actual.shape, actual.dtype) == (expected.shape, x.dtype)
    assert reference.relative_error(actual, expected) <= max(TOLERANCE[x.dtype], 1e-3)


@DTYPES
@pytest.mark.parametrize(("n", "k"), [(1, 32), (33, 64), (100, 608), (70, 1152)])
@pytest.mark.parametrize("m", [1, 3, 12, 13, 40])
def test_matches_reference(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> None:
    check(torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype), device)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_values_do_not_saturate(sign: float, device: str) -> None:
    y = ops.w8a8_linear(torch.full((2, 128), sign, device=device), ops.w8_pack(torch.ones(32, 128, device=device)))
    torch.testing.assert_close(y.cpu(), torch.full((2, 32), sign * 128))
    y = ops.w8a8_linear(torch.full((2, 128), sign, device=device), ops.w8_pack(-torch.ones(32, 128, device=device)))
    torch.testing.assert_close(y.cpu(), torch.full((2, 32), -sign * 128))


def test_what_is_not_finite_shows(device: str) -> None:
    weight = torch.randn(40, 128)
    weight[7, 100] = torch.nan
    x = torch.randn(3, 128)
    x[1, 70] = torch.inf
    y = ops.w8a8_linear(x.to(device), ops.w8_pack(weight.to(device))).cpu()
    assert not torch.isfinite(y[1]).any()
    assert not torch.isfinite(y[:, 7]).any()
    others = [column for column in range(40) if column != 7]
    assert torch.isfinite(y[[0, 2]][:, others]).all()


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    weight = ops.w8_pack(torch.randn(100, 608).to(device))
    x = torch.randn(30, 608).to(dtype).to(device)
    together = ops.w8a8_linear(x, weight)
    for m in (1, 2, 7, 12, 13, 29):
        assert torch.equal(ops.w8a8_linear(x[:m], weight), together[:m])


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w8_pack(torch.randn(40, 64, device=device))
    with pytest.raises(RuntimeError, match=r"x must be \[M, 64\], got \[2, 32\]"):
        ops.w8a8_linear(torch.zeros(2, 32, device=device), weight)
    with pytest.raises(RuntimeError, match=r"bias must be \[40\], got \[39\]"):
        ops.w8a8_linear(torch.zeros(2, 64, device=device), weight, torch.zeros(39, device=device))


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    weight = ops.w8_pack(torch.randn(40, 64, device=device))
    x, bias = torch.randn(2, 64, device=device), torch.randn(40, device=device)
    torch.library.opcheck(torch.ops.tinyserve.w8a8_linear, (x, weight.qweight, weight.scales, bias, weight.n))
