"""The residual stream gives the same sums whichever linear layers take the norms and additions into their kernels."""

import pytest
import torch

from awq.quantize import QuantConfig, QuantizedTensor, dequantize, quantize
from tinyserve.layers.fused_linear import FusedLinear, GatedLinear
from tinyserve.layers.linear import LinearLayer, W4A16Linear
from tinyserve.layers.mlp import GatedMLP
from tinyserve.layers.norm import RMSNorm
from tinyserve.layers.residual import ResidualStream

HIDDEN, INNER = 64, 96
KINDS = pytest.mark.parametrize("fuses", [(False, False), (True, True), (True, False), (False, True)])


def linear(fuses: bool, n: int, k: int) -> tuple[LinearLayer, torch.Tensor]:
    quantized = quantize(torch.randn(n, k) * k**-0.5, QuantConfig(group_size=32))
    kind = FusedLinear if fuses else W4A16Linear
    return kind.from_quantized(quantized), dequantize(quantized)


def norm_of(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, (HIDDEN,), norm.weight, norm.eps)


@KINDS
@pytest.mark.parametrize("rows", [3, 11])
def test_the_stream_is_the_sum_of_all_additions(fuses: tuple[bool, bool], rows: int) -> None:
    torch.manual_seed(0)
    norms = [RMSNorm(torch.rand(HIDDEN) + 0.5, 1e-5) for _ in range(3)]
    (reader, read), (writer, written) = linear(fuses[0], INNER, HIDDEN), linear(fuses[1], HIDDEN, INNER)
    x = torch.randn(rows, HIDDEN)
    expected, stream = x.clone(), ResidualStream(x)
    for norm in norms[:2]:
        torch.testing.assert_close(stream.through(norm, reader), norm_of(expected, norm) @ read.T)
        addend = torch.randn(rows, INNER)
        stream.add(writer, addend)
        expected += addend @ written.T
    some = torch.tensor([2, 0])
    torch.testing.assert_close(stream.select(some).normed(norms[2]), norm_of(expected, norms[2])[some])
    torch.testing.assert_close(stream.normed(norms[2]), norm_of(expected, norms[2]))
    torch.testing.assert_close(stream.through(norms[0], reader), norm_of(expected, norms[0]) @ read.T)


def test_an_addition_that_nobody_has_read_is_not_lost() -> None:
    stream, (layer, _) = ResidualStream(torch.zeros(1, HIDDEN)), linear(False, HIDDEN, HIDDEN)
    stream.add(layer, torch.ones(1, HIDDEN))
    with pytest.raises(AssertionError, match="nothing has read the stream"):
        stream.add(layer, torch.ones(1, HIDDEN))


@pytest.mark.parametrize("rows", [3, 11])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gate_and_up_are_one_layer_that_multiplies_them(has_bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    parts = [quantize(torch.randn(INNER, HIDDEN) * 0.1, QuantConfig(group_size=32)) for _ in range(2)]
    biases = [torch.randn(INNER) for _ in range(2)]
    gated, apart = (
        kind.from_quantized(
            QuantizedTensor(
                kind.join([part.codes for part in parts]),
                kind.join([part.scales for part in parts]),
                kind.join([part.zeros for part in parts]),
                parts[0].config,
            ),
            kind.join(biases) if has_bias else None,
        )
        for kind in (GatedLinear, W4A16Linear)
    )
    assert (gated.out_features, apart.out_features) == (INNER, 2 * INNER)
    assert (gated.num_weights, gated.num_bytes) == (apart.num_weights, apart.num_bytes)
    down, norm, x = linear(False, HIDDEN, INNER)[0], RMSNorm(torch.rand(HIDDEN) + 0.5, 1e-5), torch.randn(rows, HIDDEN)
    streams = [ResidualStream(x.clone()) for _ in range(2)]
    for stream, gate_up in zip(streams, (gated, apart), strict=True):
        GatedMLP(gate_up, down)(stream, norm)
    torch.testing.assert_close(streams[0].normed(norm), streams[1].normed(norm))


@pytest.mark.parametrize("rows", [2, 9])
def test_what_has_no_kernel_is_computed_all_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations that the weight is not packed for."""
    torch.manual_seed(0)
    norm, x, residual = RMSNorm(torch.rand(HIDDEN) + 0.5, 1e-5), torch.randn(rows, HIDDEN), torch.randn(rows, INNER)
    layer, _ = linear(True, INNER, HIDDEN)
    assert layer.fused is not None
    expected = layer.fused(x, norm=norm, residual=residual)
    monkeypatch.setattr("tinyserve.ops.PackedWeight.takes", lambda *_: False)
    torch.testing.assert_close(layer.fused(x, norm=norm, residual=residual), expected)
