"""w4a16_dequantize: exactly the weight that was packed; and the products that need it."""

import functools
import logging

import pytest
import reference
import torch
from kernels.packing import is_for_tensor_cores, make_quantized
from kernels.products import check, poison_memory

from tinyserve import ops

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])


@DTYPES
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(1, 32, 32), (33, 96, 32), (100, 320, 64), (17, 96, 96), (70, 256, 128)]
)
def test_is_the_weight_rounded_once(
    n: int, k: int, group_size: int, scale_dtype: torch.dtype, dtype: torch.dtype, device: str
) -> None:
    quantized = make_quantized(n, k, group_size, scale_dtype)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    poison_memory((n, k), dtype, device)
    out = ops.w4a16_dequantize(weight, dtype)
    assert torch.equal(out.cpu(), reference.dequantize(*quantized).to(dtype))


def test_the_largest_zero_is_exact(device: str) -> None:
    codes, scales, zeros = make_quantized(64, 64, 32)
    zeros[:] = 63
    weight = ops.w4a16_pack(codes.to(device), scales.to(device), zeros.to(device))
    out = ops.w4a16_dequantize(weight, torch.float32)
    assert torch.equal(out.cpu(), reference.dequantize(codes, scales, zeros).float())


@pytest.mark.parametrize("m", [1, 20])
def test_a_product_without_a_kernel_is_one_of_the_dequantized_weight(
    m: int, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    quantized = make_quantized(100, 96, 32)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))
    if not is_for_tensor_cores(weight):
        pytest.skip("the CPU's kernels multiply every dtype")
    x, bias = torch.randn(m, 96), torch.randn(100)
    expected = reference.w4a16_linear(x, *quantized, bias)
    ops._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "tinyserve.ops"):
        for dtype in (torch.float32, torch.float32, torch.bfloat16):
            multiply = functools.partial(ops.w4a16_linear, x.to(device, dtype), weight, bias.to(device, dtype))
            check(multiply, expected, dtype, device)
    said = [record.message for record in caplog.records if "has no kernel for torch." in record.message]
    assert [message.split()[5] for message in said] == ["torch.float32", "torch.bfloat16"]


def test_names_what_does_not_fit(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    with pytest.raises(RuntimeError, match="dtype must be float16, bfloat16 or float32, got Int"):
        ops.w4a16_dequantize(weight, torch.int32)
    kernel = ops._kernel("w4a16_dequantize", device)
    with pytest.raises(RuntimeError, match="qparams must be"):
        kernel(weight.qweight, weight.qparams, 40, 64, 64, torch.float32)
    with pytest.raises(RuntimeError, match="qweight must be"):
        kernel(weight.qweight, weight.qparams, 65, 64, 32, torch.float32)


def test_schema_and_fake_agree_with_the_kernel() -> None:
    weight = ops.w4a16_pack(*make_quantized(40, 64, 32))
    arguments = (weight.qweight, weight.qparams, weight.n, weight.k, weight.group_size, torch.float32)
    torch.library.opcheck(torch.ops.tinyserve.w4a16_dequantize, arguments)
