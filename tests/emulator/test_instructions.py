"""What instructions mean: those of csrc/cuda/ptx.cuh against plain computations, in any order of threads and blocks.

Where there is a GPU the same kernels run on it: the emulator and the hardware then agree.
"""

import pytest
import torch
from emulator import checks
from emulator.machine import Machine

FLOAT16 = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", FLOAT16)
def test_copies_matrix_loads_and_products(machine: Machine, dtype: torch.dtype, transposed: bool) -> None:
    assert machine.wrong_seeds(checks.gemm(machine, dtype, transposed, 72, 40, 136)) == []


@pytest.mark.parametrize("resident", [1, 3, 16])
def test_the_last_block_of_any_order_adds_up(emulated: Machine, machine: Machine, resident: int) -> None:
    emulated.ops.set_resident_blocks(resident)
    assert machine.wrong_seeds(checks.split_sum(machine, tiles=3, parts=4)) == []


def test_warp_functions(machine: Machine) -> None:
    assert machine.wrong_seeds(checks.warp_functions(machine)) == []


def test_bulk_copies_through_a_ring_of_barriers(hopper: Machine) -> None:
    assert hopper.wrong_seeds(checks.ring_sum(hopper, 11)) == []


@pytest.mark.parametrize("tile_m", [8, 24, 64, 256])
@pytest.mark.parametrize("dtype", FLOAT16)
def test_warpgroup_products_of_tensor_copies(hopper: Machine, dtype: torch.dtype, tile_m: int) -> None:
    assert hopper.wrong_seeds(checks.cluster_gemm(hopper, dtype, tile_m, m=tile_m + 3, n=72, k=328)) == []
