"""w4a16_pack: the layout holds what was put in, and refuses what it cannot hold."""

import pytest
import torch
from kernels.packing import TILE, make_quantized, unpack
from torch import Tensor

from tinyserve import ops


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(1, 32, 32), (33, 64, 32), (576, 1536, 64), (40, 96, 96), (16, 256, 128)]
)
def test_unpacking_gives_back_what_was_packed(
    n: int, k: int, group_size: int, scale_dtype: torch.dtype, device: str
) -> None:
    quantized = make_quantized(n, k, group_size, scale_dtype)
    packed = ops.w4a16_pack(*(t.to(device) for t in quantized))
    assert (packed.n, packed.k, packed.group_size) == (n, k, group_size)
    for got, given in zip(unpack(packed.qweight.cpu(), packed.qparams.cpu(), n), quantized, strict=True):
        assert torch.equal(got, given.to(got.dtype))


def test_rows_past_the_last_weigh_nothing() -> None:
    packed = ops.w4a16_pack(*make_quantized(3, 64, 32))
    codes, scales, _ = unpack(packed.qweight, packed.qparams, TILE)
    assert not codes[3:].any()
    assert not scales[3:].any()


def test_refuses_codes_above_fifteen(device: str) -> None:
    codes, scales, zeros = make_quantized(40, 64, 32)
    codes[37, 63] = 16
    with pytest.raises(RuntimeError, match=r"codes must be 0\.\.15, got a larger one"):
        ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))


@pytest.mark.parametrize(
    ("codes", "scales", "zeros", "message"),
    [
        ((4, 48), (4, 1), (4, 1), "K must be a positive multiple of 32, got K=48"),
        ((4, 128), (4, 8), (4, 8), r"the group size must be 32, 64, 128 or K=128, got 16 \(8 groups\)"),
        ((4, 512), (4, 2), (4, 2), r"the group size must be 32, 64, 128 or K=512, got 256 \(2 groups\)"),
        ((4, 128), (4, 3), (4, 3), r"scales must be \[N, K/G\] with G dividing K=128, got \[4, 3\]"),
        ((4, 128), (5, 4), (4, 4), r"scales must be \[4, 4\], got \[5, 4\]"),
        ((4, 128), (4, 4), (4, 2), r"zeros must be \[4, 4\], got \[4, 2\]"),
        ((128,), (4, 4), (4, 4), r"codes must be \[N, K\], got \[128\]"),
    ],
)
def test_names_a_shape_that_does_not_fit(
    codes: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...], message: str
) -> None:
    arguments = torch.zeros(codes, dtype=torch.uint8), torch.ones(scales), torch.zeros(zeros, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=message):
        ops.w4a16_pack(*arguments)


def test_names_a_dtype_or_layout_that_does_not_fit() -> None:
    codes, scales, zeros = make_quantized(4, 64, 32)
    with pytest.raises(RuntimeError, match="codes must be Byte, got Int"):
        ops.w4a16_pack(codes.int(), scales, zeros)
    with pytest.raises(RuntimeError, match="zeros must be Byte, got Half"):
        ops.w4a16_pack(codes, scales, zeros.half())
    with pytest.raises(RuntimeError, match="scales must be float16, bfloat16 or float32, got Double"):
        ops.w4a16_pack(codes, scales.double(), zeros)
    with pytest.raises(RuntimeError, match="codes must be contiguous"):
        ops.w4a16_pack(torch.zeros(64, 4, dtype=torch.uint8).T, scales, zeros)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_schema_and_fake_agree_with_the_kernel(scale_dtype: torch.dtype) -> None:
    arguments: tuple[Tensor, ...] = make_quantized(33, 64, 32, scale_dtype)
    torch.library.opcheck(torch.ops.tinyserve.w4a16_pack, arguments)
