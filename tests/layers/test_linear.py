"""The linear layers share one interface, and each computes x @ W^T + bias."""

import pytest
import torch

from awq.quantize import QuantConfig, dequantize, quantize
from tinyserve.layers.linear import Linear, LinearLayer, W4A8Linear, W4A16Linear, W8A8Linear

N, K = 48, 128


def make(kind: str, bias: torch.Tensor | None) -> tuple[LinearLayer, torch.Tensor]:
    """A layer and the fp32 weight [N, K] that it stands for."""
    weight = torch.randn(N, K)
    if kind == "16-bit":
        return Linear(weight, bias), weight
    quantized = quantize(weight, QuantConfig(group_size=64))
    return W4A16Linear.from_quantized(quantized, bias), dequantize(quantized)


@pytest.mark.parametrize("rows", [1, 8, 9, 70])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("kind", ["16-bit", "4-bit"])
def test_output_and_sizes(kind: str, has_bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    bias = torch.randn(N) if has_bias else None
    layer, weight = make(kind, bias)
    x = torch.randn(rows, K)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert layer.out_features == N
    assert layer.num_weights == N * K
    assert layer.num_bytes == N * K * 4 if kind == "16-bit" else layer.num_bytes < N * K


@pytest.mark.parametrize("rows", [1, 9])
def test_rounded_activations_give_nearly_the_same(rows: int) -> None:
    torch.manual_seed(0)
    quantized = quantize(torch.randn(N, K), QuantConfig(group_size=64))
    bias, x = torch.randn(N), torch.randn(rows, K)
    rounded, exact = (kind.from_quantized(quantized, bias)(x) for kind in (W4A8Linear, W4A16Linear))
    assert not torch.equal(rounded, exact)
    assert float((rounded - exact).norm() / exact.norm()) < 0.015


@pytest.mark.parametrize("rows", [1, 9])
def test_eight_bits_are_nearly_the_weight(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(N, K), torch.randn(N), torch.randn(rows, K)
    layer: LinearLayer = W8A8Linear.from_weight(weight, bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert 0 < float((layer(x) - exact).norm() / exact.norm()) < 0.02
    assert (layer.out_features, layer.num_weights) == (N, N * K)
    assert layer.num_bytes < 1.2 * 64 * K  # rows are padded to 64
