"""w4a16_pack: the layout holds what was put in, and refuses what it cannot hold."""

import pytest
import torch
from kernels.packing import BITS_16, is_for_tensor_cores, make_quantized, unpack
from torch import Tensor

from awq.quantize import QuantConfig, quantize
from tinyserve import ops
from tinyserve.layers.linear import W4A16Linear

FLOATS = pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
SHAPES = pytest.mark.parametrize(
    ("n", "k", "group_size"), [(1, 32, 32), (33, 64, 32), (130, 1536, 64), (40, 96, 96), (16, 256, 128), (65, 160, 32)]
)


@SHAPES
@FLOATS
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float32])
def test_unpacking_gives_back_what_was_packed(
    n: int, k: int, group_size: int, scale_dtype: torch.dtype, dtype: torch.dtype | None, device: str
) -> None:
    codes, scales, zeros = make_quantized(n, k, group_size, scale_dtype)
    packed = ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device), dtype=dtype)
    assert (packed.n, packed.k, packed.group_size) == (n, k, group_size)
    if is_for_tensor_cores(packed):
        kept = next((d for d in (dtype, scale_dtype) if d in BITS_16), torch.float16)
    else:
        kept = torch.float16 if scale_dtype == torch.float16 else torch.float32
    for got, given in zip(unpack(packed), (codes, scales.to(kept), zeros), strict=True):
        assert got.dtype == given.dtype
        assert torch.equal(got[:n, : given.shape[1]], given)
        assert not got[n:].any()
        assert not got[:, given.shape[1] :].any()


def test_the_layouts_of_the_backends_are_those_of_kernels_h(device: str) -> None:
    packed = ops.w4a16_pack(*(t.to(device) for t in make_quantized(65, 96, 96)))
    cuda = (2, 2, 4, 32, 4), (2, 2, 4, 8, 2, 2)
    cpu = (3, 12, 32), (3, 1, 96)
    assert (packed.qweight.shape, packed.qparams.shape) == (cuda if is_for_tensor_cores(packed) else cpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_is_packed_for_the_activations_of_its_model(dtype: torch.dtype, device: str) -> None:
    weight = torch.randn(40, 128)
    if device == "cuda":
        weight = weight.cuda()
    layer = W4A16Linear.from_quantized(quantize(weight, QuantConfig(group_size=64)), None, dtype)
    assert layer.weight.takes(dtype)
    if is_for_tensor_cores(layer.weight):
        assert layer.weight.qparams.dtype == dtype


def test_no_rows(device: str) -> None:
    packed = ops.w4a16_pack(*(t.to(device) for t in make_quantized(0, 64, 32)))
    assert packed.qweight.shape[0] == packed.qparams.shape[0] == 0


def test_refuses_codes_above_fifteen(device: str) -> None:
    codes, scales, zeros = make_quantized(40, 64, 32)
    codes[37, 63] = 16
    with pytest.raises(RuntimeError, match=r"codes must be 0\.\.15, got a larger one"):
        ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))


@pytest.mark.parametrize("scale", [7e4, float("inf"), float("nan")])
def test_tensor_cores_refuse_scales_that_do_not_fit(scale: float, device: str) -> None:
    codes, scales, zeros = (t.to(device) for t in make_quantized(40, 64, 32, torch.float32))
    scales[37, 1] = scale
    if not is_for_tensor_cores(ops.w4a16_pack(codes, torch.ones_like(scales), zeros)):
        pytest.skip("the CPU keeps such scales in fp32")
    with pytest.raises(RuntimeError, match="scales must be finite in Half, got one that is not"):
        ops.w4a16_pack(codes, scales, zeros)
    if scale == 7e4:
        ops.w4a16_pack(codes, scales, zeros, dtype=torch.bfloat16)


def test_tensor_cores_refuse_zeros_above_63(device: str) -> None:
    codes, scales, zeros = (t.to(device) for t in make_quantized(40, 64, 32))
    zeros[39, 1] = 63
    if not is_for_tensor_cores(ops.w4a16_pack(codes, scales, zeros)):
        pytest.skip("the CPU takes every zero")
    zeros[39, 1] = 64
    with pytest.raises(RuntimeError, match=r"zeros must be 0\.\.63, got a larger one"):
        ops.w4a16_pack(codes, scales, zeros)


@pytest.mark.parametrize(
    ("codes", "scales", "zeros", "message"),
    [
        ((4, 48), (4, 1), (4, 1), "K must be a positive multiple of 32, got K=48"),
        ((4, 128), (4, 8), (4, 8), r"the group size must be 32, 64, 128 or K=128, got 16"),
        ((4, 512), (4, 2), (4, 2), r"the group size must be 32, 64, 128 or K=512, got 256"),
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


@FLOATS
def test_schema_and_fake_agree_with_the_kernel(scale_dtype: torch.dtype) -> None:
    arguments: tuple[Tensor, ...] = make_quantized(33, 64, 32, scale_dtype)
    torch.library.opcheck(torch.ops.tinyserve.w4a16_pack, arguments)
