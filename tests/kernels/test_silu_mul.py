"""silu_mul against the fp64 reference, on every device this machine has."""

import pytest
import reference
import torch

from tinyserve import ops

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("size", [1, 7, 16, 33, 1536])  # tails of every vector width, a real model's
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_matches_reference(tokens: int, size: int, dtype: torch.dtype, device: str) -> None:
    gate_up = (torch.randn(tokens, 2 * size) * 3).to(dtype)
    out = ops.silu_mul(gate_up.to(device))
    assert out.shape == (tokens, size)
    assert out.dtype == dtype
    assert reference.relative_error(out.cpu(), reference.silu_mul(gate_up)) < TOLERANCE[dtype]


def test_large_gates_neither_overflow_nor_vanish(device: str) -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, -87.0, -1.0, 0.0, 87.0, 90.0, 200.0, 1e4]])
    gate_up = torch.cat([gate, torch.full_like(gate, 2.0)], dim=1)
    out = ops.silu_mul(gate_up.to(device)).cpu()
    torch.testing.assert_close(out, reference.silu_mul(gate_up).float(), rtol=1e-5, atol=1e-30)


def test_not_a_number_stays_one(device: str) -> None:
    gate_up = torch.ones(1, 32)
    gate_up[0, 3] = float("nan")
    out = ops.silu_mul(gate_up.to(device)).cpu()
    assert torch.equal(out.isnan().nonzero(), torch.tensor([[0, 3]]))


def test_no_tokens(device: str) -> None:
    assert ops.silu_mul(torch.empty(0, 32, device=device)).shape == (0, 16)


def test_refuses_an_odd_width(device: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"gate_up must be \[T, 2\*I\], got \[2, 7\]"):
        ops.silu_mul(torch.zeros(2, 7, device=device))


def test_refuses_other_dtypes(device: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match="float16, bfloat16 or float32"):
        ops.silu_mul(torch.zeros(2, 8, dtype=torch.float64, device=device))


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    torch.library.opcheck(torch.ops.tinyserve.silu_mul, (torch.randn(3, 64, dtype=torch.float16, device=device),))
