"""w4a16_gemm's wgmma configurations: where they run, and that the emulator notices a wait or a swizzle they lack.

That each computes what it should is shown, with all other configurations, by test_w4a16_gemm_configs.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import reference
import torch
from kernels.packing import make_quantized

from tinyserve import ops

CUDA_OP = "w4a16_gemm"


def wgmma_configs(device: str) -> dict[str, int]:
    return {name: i for name, i in ops.w4a16_gemm_configs(device).items() if name.startswith("wgmma")}


@pytest.fixture
def emulator(device: str) -> Iterator[Any]:
    """What the emulator can be told, as it was found after every test."""
    if device == "cuda":
        pytest.skip("this GPU is what it is")
    emulated = torch.ops.tinyserve_emulated
    yield emulated
    emulated.set_fault("")
    emulated.set_gpu(4, 90)


@pytest.mark.parametrize("fault", ["mbarrier_wait", "wgmma_wait", "swizzle", "barrier"])
def test_a_mistake_is_noticed(fault: str, device: str, emulator: Any) -> None:
    emulator.set_gpu(1, 90)  # no tile is split: a kernel that is given up leaves no counter behind
    quantized = make_quantized(136, 384, 128)
    weight = ops.w4a16_pack(*quantized)
    x = torch.randn(20, 384).half()
    expected = reference.w4a16_linear(x, *quantized)
    unnoticed = []
    for name, config in wgmma_configs(device).items():
        emulator.set_fault(fault)
        try:
            error = reference.relative_error(ops.w4a16_gemm(x, weight, config=config), expected)
        except RuntimeError:
            continue
        finally:
            emulator.set_fault("")
        if error < 1e-3:
            unnoticed.append(name)
    assert unnoticed == []


def test_only_where_there_is_wgmma(device: str, emulator: Any) -> None:
    assert wgmma_configs(device)
    for compute_capability in (80, 89, 120):
        emulator.set_gpu(4, compute_capability)
        assert not wgmma_configs(device)
