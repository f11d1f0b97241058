"""linear against the fp64 reference, on every backend this machine has."""

import pytest
import reference
import torch
from kernels.products import TOLERANCE, check

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])


@DTYPES
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 7), (100, 576), (49, 2100)])  # tails of every vector; chunks of k
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 70])
def test_matches_reference(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = (torch.randn(*size).to(dtype) for size in ((m, k), (n, k), (n,)))
    expected = reference.linear(x, weight, bias)
    check(lambda: ops.linear(x.to(device), weight.to(device), bias.to(device)), expected, dtype, device)
    expected = reference.linear(x, weight)
    check(lambda: ops.linear(x.to(device), weight.to(device)), expected, dtype, device)


@DTYPES
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, device: str) -> None:
    if device == "cuda":
        pytest.skip("cuBLAS sums in an order that depends on its tiles")
    x, weight = torch.randn(70, 1100).to(dtype).to(device), torch.randn(53, 1100).to(dtype).to(device)
    together = ops.linear(x, weight)
    for m in (1, 2, 3, 4, 5, 64, 65):
        assert torch.equal(ops.linear(x[:m], weight), together[:m])


def test_infinities_and_nans_stay_in_their_place(device: str) -> None:
    x, weight = torch.ones(6, 40), torch.ones(9, 40)
    x[2, 3], weight[4, 39] = float("nan"), float("inf")
    out = ops.linear(x.to(device), weight.to(device)).cpu()
    assert out.isnan().any(dim=1).tolist() == [row == 2 for row in range(6)]
    assert out.isinf()[[0, 1, 3, 4, 5]].any(dim=0).tolist() == [column == 4 for column in range(9)]


def test_nothing_to_do(device: str) -> None:
    assert ops.linear(torch.empty(0, 8, device=device), torch.ones(3, 8, device=device)).shape == (0, 3)
    assert ops.linear(torch.ones(2, 8, device=device), torch.empty(0, 8, device=device)).shape == (2, 0)
    assert ops.linear(torch.empty(2, 0, device=device), torch.empty(3, 0, device=device)).tolist() == [[0] * 3] * 2


def test_names_what_does_not_fit(device: str) -> None:
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(3, 8, device=device)
    with pytest.raises((RuntimeError, ValueError), match=r"x must be \[.*, 8\], got \[2, 7\]"):
        ops.linear(x[:, :7].contiguous(), weight)
    with pytest.raises((RuntimeError, ValueError), match=r"weight must be .*(Float|float32), got .*(Half|float16)"):
        ops.linear(x, weight.half())
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"bias must be \[3\], got \[2\]"):
            ops.linear(x, weight, torch.zeros(2))
        with pytest.raises(RuntimeError, match="weight must be contiguous"):
            ops.linear(x, torch.zeros(8, 3).T)


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    arguments = (torch.randn(2, 40, device=device), torch.randn(5, 40, device=device), torch.randn(5, device=device))
    torch.library.opcheck(torch.ops.tinyserve.linear, arguments)
