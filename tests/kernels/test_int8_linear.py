"""A weight of 8 bits as two of 4: against the fp64 product of the 8-bit weight, and that against the weight itself."""

import pytest
import reference
import torch
from kernels.products import TOLERANCE
from torch import Tensor

from tinyserve import ops
from tinyserve.layers.int8_linear import W8A16Linear
from tinyserve.layers.linear import LinearLayer

OP = "w4a16_gemv"  # and, with more than 8 rows, w4a16_gemm

DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp16", "bf16", "fp32"])
SIZES = pytest.mark.parametrize(("n", "k", "group"), [(100, 256, 128), (33, 192, 64), (70, 96, 32)])


@pytest.fixture(autouse=True)
def _only_what_has_a_kernel(request: pytest.FixtureRequest, is_cuda: bool) -> None:
    if is_cuda and request.node.callspec.params.get("dtype") == torch.float32:
        pytest.skip("on CUDA only 16 bits have a kernel")


def weight_of(layer: W8A16Linear) -> Tensor:
    """The 8-bit weight [N, K] in fp64."""
    high, low = ops.w4a16_dequantize(layer.weight, torch.float32).double().cpu().chunk(2, dim=1)
    return high + low


@DTYPES
@SIZES
@pytest.mark.parametrize("rows", [1, 8, 9, 70])
def test_matches_reference(rows: int, n: int, k: int, group: int, dtype: torch.dtype, device: str) -> None:
    weight, bias, x = (torch.randn(*size).to(dtype) for size in ((n, k), (n,), (rows, k)))
    x += 3  # the low halves alone are all positive: sums far above the result
    layer = W8A16Linear.from_weight(weight.to(device), bias.to(device))
    assert layer.weight.group_size == group
    got = layer(x.to(device))
    assert got.dtype == dtype
    expected = reference.linear(x, weight_of(layer), bias)
    assert reference.relative_error(got.cpu(), expected) <= TOLERANCE[dtype]


@DTYPES
@SIZES
def test_rounds_to_the_nearest_of_255_steps(n: int, k: int, group: int, dtype: torch.dtype, device: str) -> None:
    weight = torch.randn(n, k).to(dtype)
    weight[3] = 0
    weight[4] *= 1e-3
    layer = W8A16Linear.from_weight(weight.to(device))
    error = (weight_of(layer) - weight.double()).abs().unflatten(1, (-1, group))
    steps = weight.double().abs().unflatten(1, (-1, group)).amax(-1, keepdim=True) / 127
    assert bool((error <= 0.51 * steps).all())  # a step is rounded to the dtype
    assert 0.003 < reference.relative_error(weight_of(layer), weight) < 0.01


def test_is_a_layer_of_the_weights_size(device: str) -> None:
    layer: LinearLayer = W8A16Linear.from_weight(torch.randn(64, 256, device=device).half())
    assert (layer.out_features, layer.num_weights, layer.fused) == (64, 64 * 256, None)
    assert 64 * 256 <= layer.num_bytes < 1.1 * 64 * 256
    with pytest.raises(ValueError, match=r"must be \[N, K\] with K a multiple of 32, got \[4, 48\]"):
        W8A16Linear.from_weight(torch.randn(4, 48))
