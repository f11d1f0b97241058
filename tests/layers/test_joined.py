"""Layers that share their input, as one."""

import pytest
import torch

from awq.quantize import QuantConfig, QuantizedTensor, quantize
from tinyserve.layers.bitsandbytes_linear import SideBySide
from tinyserve.layers.joined import joined
from tinyserve.layers.linear import Linear, LinearLayer, W4A8Linear, W4A16Linear


def weight(n: int, group: int = 32) -> QuantizedTensor:
    return quantize(torch.randn(n, 64, generator=torch.Generator().manual_seed(n)), QuantConfig(group_size=group))


def packed(n: int, group: int = 32, bias: bool = False) -> W4A16Linear:
    return W4A16Linear.from_quantized(weight(n, group), torch.randn(n) if bias else None)


def check(layers: list[LinearLayer], kind: type) -> None:
    x = torch.randn(5, 64)
    one = joined(layers)
    assert type(one) is kind
    torch.testing.assert_close(one(x), torch.cat([layer(x) for layer in layers], dim=1))


@pytest.mark.parametrize("bias", [False, True])
def test_whole_tiles_become_one_weight(bias: bool) -> None:
    check([packed(64, bias=bias), packed(32, bias=bias), packed(33, bias=bias)], W4A16Linear)


def test_the_kind_stays() -> None:
    check([W4A8Linear(packed(n).weight) for n in (64, 32)], W4A8Linear)
    check([packed(64)], W4A16Linear)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_of_16_bits_become_one(bias: bool) -> None:
    check([Linear(torch.randn(n, 64), torch.randn(n) if bias else None) for n in (3, 7)], Linear)


def test_what_cannot_be_one_stays_side_by_side() -> None:
    check([packed(33), packed(64)], SideBySide)  # ends within a tile
    check([packed(64), packed(64, group=64)], SideBySide)
    check([packed(64, bias=True), packed(64)], SideBySide)
    check([packed(64), Linear(torch.randn(4, 64))], SideBySide)
    check([packed(64), W4A8Linear(packed(32).weight)], SideBySide)
