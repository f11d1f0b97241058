"""layer_norm against the fp64 reference, on every backend this machine has."""

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])


def make_arguments(tokens: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and residual; x with a constant row where there are several."""
    x = torch.randn(tokens, channels)
    x[1:2] = 3
    weight, bias = torch.randn(channels), torch.randn(channels)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), torch.randn(tokens, channels).to(dtype)


@DTYPES
# one element; tails of every vector width; a real model's; more than the GPU kernel keeps in registers
@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (3, 7), (2, 33), (5, 768), (2, 1000), (1, 33000)])
def test_matches_reference(tokens: int, channels: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias, _ = make_arguments(tokens, channels, dtype)
    for given in (bias, None):
        out = ops.layer_norm(x.to(device), weight.to(device), None if given is None else given.to(device), 1e-5)
        assert (out.shape, out.dtype) == (x.shape, dtype)
        expected = reference.layer_norm(x, weight, given, 1e-5)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize(("tokens", "channels"), [(3, 7), (5, 768), (1, 33000)])
def test_adds_the_residual_in_place(tokens: int, channels: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias, residual = make_arguments(tokens, channels, dtype)
    added = x + residual
    stored = residual.to(device, copy=True)
    out = ops.layer_norm(x.to(device), weight.to(device), bias.to(device), 1e-5, stored)
    assert torch.equal(stored.cpu(), added)
    assert reference.relative_error(out.cpu(), reference.layer_norm(added, weight, bias, 1e-5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("channels", [7, 768, 5000])
@pytest.mark.parametrize("mean", [1e3, -1e5, 1e7])
def test_a_mean_far_beyond_the_deviation_costs_nothing(mean: float, channels: int, device: str, is_cuda: bool) -> None:
    x = torch.randn(3, channels) + mean
    weight, bias = torch.randn(channels), torch.randn(channels)
    out = ops.layer_norm(x.to(device), weight.to(device), bias.to(device), 1e-5)
    allowed = 1e-5 if is_cuda else 1e-6
    assert reference.relative_error(out.cpu(), reference.layer_norm(x, weight, bias, 1e-5)) < allowed


def test_rows_that_start_off_16_bytes(device: str) -> None:
    x, weight, bias, _ = make_arguments(4, 64, torch.float16)
    shifted = torch.empty(4 * 64 + 1, dtype=torch.float16, device=device)[1:].view(4, 64)
    shifted.copy_(x)
    out = ops.layer_norm(shifted, weight.to(device), bias.to(device), 1e-5)
    assert reference.relative_error(out.cpu(), reference.layer_norm(x, weight, bias, 1e-5)) < 1e-3


def test_large_values_do_not_overflow(device: str) -> None:
    x = torch.full((2, 576), 60000.0, dtype=torch.float16, device=device)
    x[:, ::2] = -60000.0
    ones = torch.ones(576, dtype=torch.float16, device=device)
    torch.testing.assert_close(ops.layer_norm(x, ones, None, 1e-5), x.sign())


def test_not_a_number_stays_in_its_row(device: str) -> None:
    x = torch.ones(3, 40, device=device)
    x[1, 7] = float("nan")
    out = ops.layer_norm(x, torch.ones(40, device=device), None, 1e-5)
    assert out.isnan().any(dim=1).tolist() == [False, True, False]


def test_no_tokens(device: str) -> None:
    assert ops.layer_norm(torch.empty(0, 8, device=device), torch.ones(8, device=device), None, 1e-5).shape == (0, 8)


def test_names_what_does_not_fit(device: str) -> None:
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(RuntimeError, match=r"weight must be \[8\], got \[7\]"):
        ops.layer_norm(x, weight[:7].contiguous(), None, 1e-5)
    with pytest.raises(RuntimeError, match=r"bias must be \[8\], got \[7\]"):
        ops.layer_norm(x, weight, weight[:7].contiguous(), 1e-5)
    with pytest.raises(RuntimeError, match=r"x must be \[T, C\], got \[8\]"):
        ops.layer_norm(x[0], weight, None, 1e-5)
    with pytest.raises(RuntimeError, match=r"bias must be Float, got Half"):
        ops.layer_norm(x, weight, weight.half(), 1e-5)
    with pytest.raises(RuntimeError, match=r"residual must be \[2, 8\], got \[1, 8\]"):
        ops.layer_norm(x, weight, None, 1e-5, x[:1].clone())


@pytest.mark.parametrize("is_whole", [False, True])
def test_schema_and_fake_agree_with_the_kernel(is_whole: bool, device: str) -> None:
    x, weight, bias, residual = (t.to(device) for t in make_arguments(3, 64, torch.float16))
    optional = (bias, residual) if is_whole else (None, None)
    torch.library.opcheck(torch.ops.tinyserve.layer_norm, (x, weight, optional[0], 1e-5, optional[1]))
