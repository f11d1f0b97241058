"""w8_pack: codes and scales are those of the nearest of 255 steps, where kernels.h says they lie."""

import pytest
import torch
from torch import Tensor

from tinyserve import ops

TILE = 32


def unpack(qweight: Tensor, scales: Tensor, n: int, k: int) -> Tensor:
    """The fp64 weight [n, k] from the layout's words, byte by byte."""
    words = qweight.long() & 0xFFFFFFFF  # [tiles, K/8, 2, 32]
    codes = torch.empty(len(words), TILE, k, dtype=torch.long)
    for odd in range(2):
        for byte in range(4):
            codes[:, :, 2 * byte + odd :: 8] = ((words[:, :, odd] >> (8 * byte)) & 0xFF).transpose(1, 2)
    per_row = scales.transpose(1, 2).flatten(0, 1).double()
    return ((codes.flatten(0, 1) - 128) * per_row.repeat_interleave(k // per_row.shape[1], 1))[:n]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (33, 64), (100, 96), (40, 576)])
def test_holds_the_nearest_steps(n: int, k: int, dtype: torch.dtype, device: str) -> None:
    weight = torch.randn(n, k).to(dtype)
    packed = ops.w8_pack(weight.to(device))
    assert (packed.n, packed.k) == (n, k)
    group = 64 if k % 64 == 0 else 32
    step = (weight.double().view(n, -1, group).abs().amax(-1) / 127).repeat_interleave(group, 1)
    error = (unpack(packed.qweight.cpu(), packed.scales.cpu(), n, k) - weight.double()).abs()
    assert bool((error <= step * 0.5001).all())


def test_rows_past_the_last_weigh_nothing() -> None:
    packed = ops.w8_pack(torch.randn(3, 64))
    assert not packed.scales[:, :, 3:].any()


def test_zeros_stay_zeros(device: str) -> None:
    packed = ops.w8_pack(torch.zeros(3, 64, device=device))
    assert not unpack(packed.qweight.cpu(), packed.scales.cpu(), 3, 64).any()


def test_names_what_does_not_fit(device: str) -> None:
    with pytest.raises(RuntimeError, match="K must be a positive multiple of 32, got K=40"):
        ops.w8_pack(torch.zeros(3, 40, device=device))
    with pytest.raises(RuntimeError, match="weight must be float16, bfloat16 or float32, got Int"):
        ops.w8_pack(torch.zeros(3, 64, dtype=torch.int32, device=device))


def test_schema_and_fake_agree_with_the_kernel(device: str) -> None:
    torch.library.opcheck(torch.ops.tinyserve.w8_pack, (torch.randn(40, 96, device=device),))
