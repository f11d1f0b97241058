"""w8_embedding: rows of an 8-bit weight are those that its product with unit vectors shows."""

import pytest
import torch
from kernels.test_w8_pack import unpack

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])


@DTYPES
@pytest.mark.parametrize(("n", "k"), [(1, 32), (33, 64), (100, 96), (40, 576)])
def test_is_the_dequantized_row(n: int, k: int, dtype: torch.dtype, device: str) -> None:
    packed = ops.w8_pack(torch.randn(n, k, device=device))
    rows = torch.randint(0, n, (17,), dtype=torch.int32)
    expected = unpack(packed.qweight.cpu(), packed.scales.cpu(), n, k)[rows]
    out = ops.w8_embedding(rows.to(device), packed, dtype)
    assert torch.equal(out.cpu(), expected.float().to(dtype))


def test_no_tokens(device: str) -> None:
    packed = ops.w8_pack(torch.randn(3, 64, device=device))
    none = torch.empty(0, dtype=torch.int32, device=device)
    assert ops.w8_embedding(none, packed, torch.float16).shape == (0, 64)


def test_names_what_does_not_fit(device: str) -> None:
    packed = ops.w8_pack(torch.randn(3, 64, device=device))
    with pytest.raises(RuntimeError, match=r"rows must be in 0\.\.2, got 3"):
        ops.w8_embedding(torch.tensor([0, 3], dtype=torch.int32, device=device), packed, torch.float16)
    with pytest.raises(RuntimeError, match="rows must be Int, got Long"):
        ops.w8_embedding(torch.tensor([0], device=device), packed, torch.float16)


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    packed = ops.w8_pack(torch.randn(40, 96, device=device))
    rows = torch.tensor([5, 39], dtype=torch.int32, device=device)
    arguments = (rows, packed.qweight, packed.scales, packed.n, torch.bfloat16)
    torch.library.opcheck(torch.ops.tinyserve.w8_embedding, arguments)
