"""rms_norm against the fp64 reference, on every backend this machine has."""

import pytest
import reference
import torch
from torch import Tensor

from tinyserve import ops

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])


def make_arguments(tokens: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and residual, x with a row of zeros where there are several."""
    x = torch.randn(tokens, channels)
    x[1:2] = 0
    return x.to(dtype), torch.randn(channels).to(dtype), torch.randn(tokens, channels).to(dtype)


@DTYPES
# one element; tails of every vector width; a real model's; more than the GPU kernel keeps in registers
@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (3, 7), (2, 33), (5, 576), (2, 1000), (1, 33000)])
def test_matches_reference(tokens: int, channels: int, dtype: torch.dtype, device: str) -> None:
    x, weight, _ = make_arguments(tokens, channels, dtype)
    out = ops.rms_norm(x.to(device), weight.to(device), 1e-5)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert reference.relative_error(out.cpu(), reference.rms_norm(x, weight, 1e-5)) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize(("tokens", "channels"), [(3, 7), (5, 576), (1, 33000)])
def test_adds_the_residual_in_place(tokens: int, channels: int, dtype: torch.dtype, device: str) -> None:
    x, weight, residual = make_arguments(tokens, channels, dtype)
    added = x + residual
    stored = residual.to(device)
    out = ops.rms_norm(x.to(device), weight.to(device), 1e-5, stored)
    assert torch.equal(stored.cpu(), added)
    assert reference.relative_error(out.cpu(), reference.rms_norm(added, weight, 1e-5)) < TOLERANCE[dtype]


def test_rows_that_start_off_16_bytes(device: str) -> None:
    x, weight, _ = make_arguments(4, 64, torch.float16)
    shifted = torch.empty(4 * 64 + 1, dtype=torch.float16, device=device)[1:].view(4, 64)
    shifted.copy_(x)
    out = ops.rms_norm(shifted, weight.to(device), 1e-5)
    assert reference.relative_error(out.cpu(), reference.rms_norm(x, weight, 1e-5)) < 1e-3


def test_large_values_do_not_overflow(device: str) -> None:
    x = torch.full((2, 576), 60000.0, dtype=torch.float16, device=device)
    out = ops.rms_norm(x, torch.ones(576, dtype=torch.float16, device=device), 1e-5)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_not_a_number_stays_in_its_row(device: str) -> None:
    x = torch.ones(3, 40, device=device)
    x[1, 7] = float("nan")
    out = ops.rms_norm(x, torch.ones(40, device=device), 1e-5)
    assert out.isnan().any(dim=1).tolist() == [False, True, False]


def test_no_tokens(device: str) -> None:
    assert ops.rms_norm(torch.empty(0, 8, device=device), torch.ones(8, device=device), 1e-5).shape == (0, 8)


def test_names_what_does_not_fit(device: str) -> None:
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(RuntimeError, match=r"weight must be \[8\], got \[7\]"):
        ops.rms_norm(x, weight[:7].contiguous(), 1e-5)
    with pytest.raises(RuntimeError, match=r"x must be \[T, C\], got \[8\]"):
        ops.rms_norm(x[0], weight, 1e-5)
    with pytest.raises(RuntimeError, match=r"weight must be Float, got Half"):
        ops.rms_norm(x, weight.half(), 1e-5)
    with pytest.raises(RuntimeError, match=r"residual must be \[2, 8\], got \[1, 8\]"):
        ops.rms_norm(x, weight, 1e-5, x[:1].clone())
    with pytest.raises(RuntimeError, match=r"x must be contiguous, got strides \[1, 2\] for sizes \[2, 8\]"):
        ops.rms_norm(torch.zeros(8, 2, device=device).T, weight, 1e-5)
    with pytest.raises(RuntimeError, match=r"x must be float16, bfloat16 or float32, got Double"):
        ops.rms_norm(x.double(), weight.double(), 1e-5)


@pytest.mark.parametrize("with_residual", [False, True])
def test_schema_and_fake_agree_with_the_kernel(with_residual: bool, device: str) -> None:
    x, weight, residual = (t.to(device) for t in make_arguments(3, 64, torch.float16))
    torch.library.opcheck(torch.ops.tinyserve.rms_norm, (x, weight, 1e-5, residual if with_residual else None))
