"""Rounding against a slow reading of its definition, and its edges."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awq.quantize import QuantConfig, QuantizedTensor, dequantize, fake_quantize, quantize

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def random_weight(n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slow_quantize(weight: Tensor, config: QuantConfig) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    """Codes, scales and zeros, one number after the other."""
    k = weight.shape[1]
    group = k if config.group_size == -1 else config.group_size
    codes, scales, zeros = [], [], []
    for row in weight.double().tolist():
        row_codes, row_scales, row_zeros = [], [], []
        for start in range(0, k, group):
            values = row[start : start + group]
            if config.zero_point:
                span = max(max(values), 0.0) - min(min(values), 0.0)
                scale = max(span, 1e-5) / (2**config.bits - 1)
            else:
                scale = max(max(abs(value) for value in values), 1e-5) / (2 ** (config.bits - 1) - 1)
            scale = float(torch.tensor(scale, dtype=torch.float32).to(weight.dtype))
            zero = 2 ** (config.bits - 1)
            if config.zero_point:
                zero = min(max(round(-min(min(values), 0.0) / scale), 0), 2**config.bits - 1)
            row_codes += [min(max(round(value / scale) + zero, 0), 2**config.bits - 1) for value in values]
            row_scales.append(scale)
            row_zeros.append(zero)
        codes.append(row_codes)
        scales.append(row_scales)
        zeros.append(row_zeros)
    return codes, scales, zeros


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero_point", [True, False], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("n", "k", "group_size"), [(3, 64, 32), (5, 192, 64), (2, 256, 128), (4, 96, -1)])
def test_equals_the_definition(n: int, k: int, group_size: int, zero_point: bool, dtype: torch.dtype) -> None:
    config = QuantConfig(4, group_size, zero_point)
    weight = random_weight(n, k, dtype)
    quantized = quantize(weight, config)
    codes, scales, zeros = slow_quantize(weight, config)
    assert quantized.scales.dtype == dtype
    torch.testing.assert_close(quantized.scales.double(), torch.tensor(scales, dtype=torch.float64), rtol=1e-6, atol=0)
    assert quantized.zeros.tolist() == zeros
    # A value half-way between two codes may go either way: fp32 here, fp64 there.
    different = (quantized.codes.int() - torch.tensor(codes)).abs()
    assert int(different.max()) <= 1
    assert float(different.float().mean()) < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_point", [True, False], ids=["asymmetric", "symmetric"])
def test_error_is_at_most_half_a_step(bits: int, zero_point: bool, dtype: torch.dtype) -> None:
    weight = random_weight(16, 128, dtype)
    quantized = quantize(weight, QuantConfig(bits, 32, zero_point))
    step = quantized.scales.float().repeat_interleave(32, dim=1)
    # Rounding the scale to its dtype may push the outermost code over the edge by its relative error times the range.
    slack = 2**bits * torch.finfo(dtype).eps if zero_point else 0.51
    error = (dequantize(quantized) - weight.float()).abs()
    assert bool((error <= step * (0.5 + slack)).all())


def test_fake_quantize_is_quantize_then_dequantize() -> None:
    for dtype in DTYPES:
        weight = random_weight(8, 256, dtype)
        for config in (QuantConfig(4, 64), QuantConfig(3, -1, False)):
            fake = fake_quantize(weight, config)
            assert fake.dtype == dtype
            assert torch.equal(fake, dequantize(quantize(weight, config), dtype))


def test_quantizing_again_changes_nothing() -> None:
    weight = fake_quantize(random_weight(32, 256), QuantConfig(4, 64))
    torch.testing.assert_close(fake_quantize(weight, QuantConfig(4, 64)), weight, rtol=1e-5, atol=1e-6)


def test_codes_fit_the_stored_scales_better_than_the_unrounded_ones() -> None:
    """bf16 scales are off by up to 0.4 %; codes computed from them make up for it."""
    weight = random_weight(64, 256)
    good = dequantize(quantize(weight, QuantConfig(4, 64), torch.bfloat16))
    naive = quantize(weight, QuantConfig(4, 64))
    rounded = QuantizedTensor(naive.codes, naive.scales.bfloat16(), naive.zeros, naive.config)
    assert float((good - weight).square().mean()) < float((dequantize(rounded) - weight).square().mean())


def test_more_rows_than_one_chunk_and_strided_input() -> None:
    weight = random_weight(512, 2048).t()  # [2048, 512], not contiguous, several chunks
    quantized = quantize(weight, QuantConfig(4, 128))
    parts = [quantize(part.contiguous(), QuantConfig(4, 128)) for part in weight.split(100)]
    assert torch.equal(quantized.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(quantized.scales, torch.cat([part.scales for part in parts]))
    assert torch.equal(quantized.zeros, torch.cat([part.zeros for part in parts]))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-7, 6e4])
def test_constant_groups_keep_their_value(value: float) -> None:
    """A group of one sign: zero stays within its range, so nothing is cut off."""
    for dtype in (torch.float16, torch.float32):
        weight = torch.full((2, 64), value, dtype=dtype)
        back = dequantize(quantize(weight, QuantConfig(4, 32)))
        torch.testing.assert_close(back, weight.float(), rtol=1e-3, atol=5e-7)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 4),
    rows=st.integers(1, 5),
    bits=st.integers(2, 8),
    zero_point=st.booleans(),
    magnitude=st.floats(-20, 15),
    shift=st.floats(-4, 4),
    seed=st.integers(0, 2**31),
)
def test_any_weights_round_within_a_step(
    groups: int, rows: int, bits: int, zero_point: bool, magnitude: float, shift: float, seed: int
) -> None:
    weight = (random_weight(rows, groups * 32, seed=seed) + shift) * 2.0**magnitude
    quantized = quantize(weight, QuantConfig(bits, 32, zero_point))
    assert int(quantized.codes.max()) < 2**bits
    assert bool((quantized.scales > 0).all())
    step = quantized.scales.repeat_interleave(32, dim=1)
    assert bool(((dequantize(quantized) - weight).abs() <= step * 1.01).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_values_that_are_not_numbers(bad: float) -> None:
    weight = random_weight(4, 64, torch.float16)
    weight[2, 7] = bad
    with pytest.raises(ValueError, match=r"model\.layers\.3\.mlp\.up_proj has 1 NaN or infinite value"):
        quantize(weight, QuantConfig(4, 64), name="model.layers.3.mlp.up_proj")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 96), "lin: group_size 64 does not divide the 96 in features"),
        (torch.zeros(4, 64, dtype=torch.int32), r"lin must be fp16, bf16 or fp32 \[N, K\], got int32 \[4, 64\]"),
        (torch.zeros(64), r"lin must be .* got float32 \[64\]"),
        (torch.zeros(4, 0), "lin: group_size 64 does not divide the 0 in features"),
    ],
)
def test_refuses_what_is_not_a_weight(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, QuantConfig(4, 64), name="lin")


def test_refuses_scales_that_overflow() -> None:
    with pytest.raises(ValueError, match=r"weight: values up to 1e\+06 need scales beyond torch\.float16"):
        quantize(torch.full((1, 32), 1e6), QuantConfig(4, 32), torch.float16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits must be an integer from 2 to 8, got 1"),
        ({"bits": 9}, "bits must be .* got 9"),
        ({"bits": True}, "bits must be .* got True"),
        ({"group_size": 0}, "group_size must be a positive integer, or -1 for whole rows, got 0"),
        ({"group_size": "128"}, "group_size must be .* got '128'"),
        ({"zero_point": 1}, "zero_point must be true or false, got 1"),
    ],
)
def test_config_names_the_bad_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantConfig(**fields)


def test_quantized_tensor_refuses_parts_that_do_not_fit() -> None:
    codes, scales = torch.zeros(4, 64, dtype=torch.uint8), torch.zeros(4, 2)
    zeros = torch.zeros(4, 2, dtype=torch.uint8)
    assert QuantizedTensor(codes, scales, zeros, QuantConfig(4, 32)).group == 32
    with pytest.raises(ValueError, match=r"scales must be fp16, bf16 or fp32 \[4, 1\], got float32 \[4, 2\]"):
        QuantizedTensor(codes, scales, zeros, QuantConfig(4, 64))
    with pytest.raises(ValueError, match=r"zeros must be uint8 \[4, 2\], got float32 \[4, 2\]"):
        QuantizedTensor(codes, scales, zeros.float(), QuantConfig(4, 32))
    with pytest.raises(ValueError, match=r"codes must be uint8 \[N, K\], got int32 \[4, 64\]"):
        QuantizedTensor(codes.int(), scales, zeros, QuantConfig(4, 32))
