"""embedding: the rows of a matrix."""

import pytest
import torch

from tinyserve import ops


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_is_the_rows(dtype: torch.dtype, device: str) -> None:
    weight, rows = torch.randn(11, 7).to(dtype), torch.tensor([0, 10, 3, 3], dtype=torch.int32)
    assert torch.equal(ops.embedding(rows.to(device), weight.to(device)).cpu(), weight[rows])
    assert ops.embedding(rows[:0].to(device), weight.to(device)).shape == (0, 7)


def test_names_what_does_not_fit() -> None:
    weight = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"rows must be in 0\.\.2, got -1"):
        ops.embedding(torch.tensor([-1], dtype=torch.int32), weight)
    with pytest.raises(RuntimeError, match=r"weight must be \[V, C\], got \[3\]"):
        ops.embedding(torch.tensor([0], dtype=torch.int32), weight[:, 0].contiguous())


def test_schema_and_fake_agree_with_the_kernel() -> None:
    torch.library.opcheck(torch.ops.tinyserve.embedding, (torch.tensor([1], dtype=torch.int32), torch.zeros(3, 4)))
