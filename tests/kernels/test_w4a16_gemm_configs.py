"""w4a16_gemm's tile configurations on CUDA: each, over ragged shapes, however the work is split, against fp64."""

import os
import random
from collections.abc import Callable, Iterator

import pytest
import reference
import torch
from emulator import guarded
from kernels.packing import make_quantized
from kernels.products import check
from torch import Tensor

from tinyserve import ops

CUDA_OP = "w4a16_gemm"
FP16, BF16 = torch.float16, torch.bfloat16


def multiply(
    device: str,
    config: int,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    bias: bool = False,
    residual: bool = False,
    silu_mul: bool = False,
) -> Tensor:
    """Checks one product of random operands, M, N, K and the group size given, and returns it."""
    m, n, k, group_size = shape
    codes, scales, zeros = make_quantized(n, k, group_size)
    quantized = codes, scales.to(dtype), zeros
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized), dtype=dtype)
    x = torch.randn(m, k).to(dtype)
    added = torch.randn(n).to(dtype) if bias else None
    expected = reference.w4a16_linear(x, *quantized, added)
    if silu_mul:
        expected = reference.silu_mul_of_tiles(expected)
    later = torch.randn(expected.shape).to(dtype) if residual else None
    if later is not None:
        expected = expected + later
    there, then = (None if t is None else t.to(device) for t in (added, later))
    x = x.to(device)
    return check(lambda: ops.w4a16_gemm(x, weight, there, then, silu_mul, config), expected, dtype, device)


def configs(device: str) -> dict[str, int]:
    found = ops.w4a16_gemm_configs(device)
    assert found
    return found


@pytest.fixture
def gpu(device: str) -> Iterator[Callable[[int, int], None]]:
    """Makes the emulator a GPU of so many multiprocessors and such a compute capability, for one test."""
    if device == "cuda":
        pytest.skip("this GPU is what it is")
    yield torch.ops.tinyserve_emulated.set_gpu
    torch.ops.tinyserve_emulated.set_gpu(4, 90)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((9, 1, 32, 32), FP16),  # less than a tile of everything
        ((5, 64, 64, 64), BF16),
        ((20, 200, 224, 32), FP16),  # two groups in a block of 64 k; half a block at the end
        ((20, 200, 224, 32), BF16),
        ((130, 136, 192, 64), FP16),  # tails of every tile; N a multiple of 8 alone
        ((70, 300, 256, 128), BF16),
        ((33, 40, 544, 544), FP16),  # a row is one group, and no whole number of blocks
        ((17, 77, 96, 96), FP16),  # columns that fill no 16 bytes
    ],
)
def test_every_configuration(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> None:
    for config in configs(device).values():
        multiply(device, config, shape, dtype, bias=True)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_every_configurations_epilogue(dtype: torch.dtype, device: str) -> None:
    for config in configs(device).values():
        multiply(device, config, (19, 144, 128, 64), dtype, silu_mul=True)
        multiply(device, config, (19, 144, 128, 64), dtype, bias=True, residual=True, silu_mul=True)
        multiply(device, config, (9, 70, 64, 64), dtype, residual=True)


@pytest.mark.parametrize("multiprocessors", [3, 11])
def test_every_split(multiprocessors: int, device: str, gpu: Callable[[int, int], None]) -> None:
    """Tiles whole, cut in two and in many; again with other parts and other counters."""
    gpu(multiprocessors, 90)
    for config in configs(device).values():
        multiply(device, config, (12, 600, 384, 128), FP16, bias=True)
        multiply(device, config, (20, 72, 512, 128), BF16, residual=True)


def test_whole_rounds_follow_split_tiles(device: str, gpu: Callable[[int, int], None]) -> None:
    gpu(1, 90)
    for config in configs(device).values():
        multiply(device, config, (150, 700, 64, 64), FP16)


def test_the_same_bits_every_time(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(200, 1024, 128)))
    x = torch.randn(25, 1024).half().to(device)
    for config in configs(device).values():
        outs = []
        for seed in range(1, 4):
            if device == "cpu":
                torch.ops.tinyserve_emulated.set_seed(seed)
            outs.append(ops.w4a16_gemm(x, weight, config=config))
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("k", [32, 96, 320])
def test_not_a_number_stays_in_its_row(k: int, device: str) -> None:
    """Rows of x beside those of the product, in memory, and one of its own, are not numbers."""
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, k, 32)))
    around = torch.full((21, k), float("nan"), dtype=FP16)
    around[1:20] = torch.randn(19, k)
    around[7] = float("nan")
    x = around.to(device)[1:20]
    for config in configs(device).values():
        rows = ops.w4a16_gemm(x, weight, config=config).isnan()
        assert rows.all(dim=1).tolist() == rows.any(dim=1).tolist() == [i == 6 for i in range(19)]


def test_reads_nothing_outside_its_operands(device: str) -> None:
    if device == "cuda":
        pytest.skip("compute-sanitizer sees that on a GPU")
    for m, n, k, group_size in [(19, 72, 96, 32), (9, 200, 544, 544)]:
        weight = ops.w4a16_pack(*make_quantized(n, k, group_size))
        x, bias, residual = torch.randn(m, k).half(), torch.randn(n).half(), torch.randn(m, n).half()
        kernel = torch.ops.tinyserve_emulated.w4a16_gemm.default
        operands = (x, weight.qweight, weight.qparams, bias, n, k, group_size, residual, False)
        for config in configs(device).values():
            out = guarded.call(kernel, *operands, config)
            assert torch.equal(out, ops.w4a16_gemm(x, weight, bias, residual, config=config))


@pytest.mark.parametrize("fault", ["barrier", "cp_async_wait", "fragment"])
def test_a_seeded_fault_is_seen(fault: str, device: str) -> None:  # of wgmma: test_w4a16_gemm_hopper.py
    if device == "cuda":
        pytest.skip("a GPU makes no mistakes on request")
    codes, scales, zeros = make_quantized(72, 1024, 128)
    weight = ops.w4a16_pack(codes, scales, zeros)
    x = torch.randn(20, 1024).half()
    expected = reference.w4a16_linear(x, codes, scales, zeros)
    torch.ops.tinyserve_emulated.set_fault(fault)
    try:
        mma = [config for name, config in configs(device).items() if name.startswith("mma")]
        outs = [ops.w4a16_gemm(x, weight, config=config) for config in mma]
    finally:
        torch.ops.tinyserve_emulated.set_fault("")
    assert all(not reference.relative_error(out, expected) < 1e-3 for out in outs)


def test_operands_that_begin_off_16_bytes(device: str) -> None:
    m, n, k = 11, 48, 64
    quantized = make_quantized(n, k, 32)
    weight = ops.w4a16_pack(*(t.to(device) for t in quantized))

    def shifted(t: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1), t.flatten()]).half().to(device)[1:].view(t.shape)

    x, bias, residual = torch.randn(m, k).half(), torch.randn(n).half(), torch.randn(m, n).half()
    expected = reference.w4a16_linear(x, *quantized, bias) + residual
    out = ops.w4a16_gemm(shifted(x.float()), weight, shifted(bias.float()), shifted(residual.float()))
    assert reference.relative_error(out.cpu(), expected) < 1e-3


@pytest.mark.parametrize("compute_capability", [80, 86, 89, 90, 120])
def test_the_choice_fits_every_gpu(compute_capability: int, device: str, gpu: Callable[[int, int], None]) -> None:
    gpu(5, compute_capability)
    for m in (1, 9, 20, 40, 100, 200):
        multiply(device, -1, (m, 80, 160, 32), FP16)


def test_a_configuration_that_does_not_fit_is_refused(device: str, gpu: Callable[[int, int], None]) -> None:
    everywhere = configs(device)
    gpu(4, 86)
    missing = set(everywhere.values()) - set(configs(device).values())
    assert missing
    weight = ops.w4a16_pack(*make_quantized(40, 64, 32))
    with pytest.raises(RuntimeError, match="does not run on this device"):
        ops.w4a16_gemm(torch.zeros(9, 64).half(), weight, config=min(missing))


def test_float_activations_are_refused(device: str) -> None:
    weight = ops.w4a16_pack(*(t.to(device) for t in make_quantized(40, 64, 32)))
    with pytest.raises(RuntimeError, match=r"(?i)x must be .*float"):
        ops.w4a16_gemm(torch.zeros(9, 64, device=device), weight)


@pytest.mark.parametrize("seed", range(int(os.environ.get("TINYSERVE_RANDOM_SHAPES", "20"))))
def test_random_shapes(seed: int, device: str) -> None:
    chance = random.Random(f"{seed} {device}")
    largest = 1000 if device == "cuda" else 150
    for _ in range(10 if device == "cuda" else 1):  # 200 there, 20 in each of the emulated orders
        k = chance.randrange(1, 17) * 32
        group_size = chance.choice([g for g in (32, 64, 128, k) if k % g == 0])
        n, silu_mul = chance.randrange(1, 2 * largest), chance.random() < 0.3
        n = (n + 15) // 16 * 16 if silu_mul else n
        multiply(
            device,
            chance.choice([-1, *configs(device).values()]),
            (chance.randrange(1, largest), n, k, group_size),
            chance.choice([FP16, BF16]),
            bias=chance.random() < 0.5,
            residual=chance.random() < 0.5,
            silu_mul=silu_mul,
        )
