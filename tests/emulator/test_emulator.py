"""The emulator computes what instructions mean, in every order of threads and blocks; mistakes it is for show."""

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch

SEEDS = range(1, 9)


def wrong_seeds(ops: Any, check: Callable[[], bool], seeds: range = SEEDS) -> list[int]:
    """The orders of threads for which `check` finds a wrong result, or the emulator a mistake."""
    wrong = []
    for seed in seeds:
        ops.set_seed(seed)
        try:
            right = check()
        except RuntimeError:
            right = False
        if not right:
            wrong.append(seed)
    return wrong


def gemm_is_right(ops: Any, dtype: torch.dtype, transposed: bool, m: int, n: int, k: int) -> Callable[[], bool]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(m, k, generator=generator).to(dtype)
    b = torch.randn(n, k, generator=generator).to(dtype)
    expected = a.double() @ b.double().T
    operands = (a.T.contiguous(), b.T.contiguous()) if transposed else (a, b)

    def check() -> bool:
        out = torch.full((m, n), torch.nan)
        ops.test_gemm(*operands, out, transposed)
        return bool(reference.relative_error(out, expected) < 1e-6)

    return check


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_matrix_loads_and_products(emulated: Any, dtype: torch.dtype, transposed: bool) -> None:
    assert wrong_seeds(emulated, gemm_is_right(emulated, dtype, transposed, 72, 40, 136)) == []


@pytest.mark.parametrize("fault", ["barrier", "cp_async_wait", "fragment"])
def test_a_gemm_with_a_mistake_is_wrong(emulated: Any, fault: str) -> None:
    emulated.set_fault(fault)
    check = gemm_is_right(emulated, torch.float16, False, 72, 40, 136)
    assert wrong_seeds(emulated, check) == list(SEEDS)


def rms_norm_is_right(ops: Any) -> Callable[[], bool]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 2048, generator=generator), torch.ones(2048)
    x *= torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    expected = reference.rms_norm(x, weight, 1e-5)
    return lambda: bool(reference.relative_error(ops.rms_norm(x, weight, 1e-5), expected) < 1e-6)


def test_the_sum_of_a_block_needs_its_barrier(emulated: Any) -> None:
    assert wrong_seeds(emulated, rms_norm_is_right(emulated)) == []
    emulated.set_fault("barrier")
    assert wrong_seeds(emulated, rms_norm_is_right(emulated))


def split_sum_is_right(ops: Any, tiles: int, parts: int) -> Callable[[], bool]:
    x = torch.randn(tiles, parts, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(tiles, 64)
    for part in range(parts):
        expected += x[:, part]

    def check() -> bool:
        workspace, counters = torch.full_like(x, torch.nan), torch.zeros(tiles, dtype=torch.int32)
        out = torch.full((tiles, 64), torch.nan)
        ops.test_split_sum(x, workspace, counters, out)
        return torch.equal(out, expected) and not counters.any()

    return check


@pytest.mark.parametrize("resident", [1, 3, 16])
def test_the_last_block_of_any_order_adds_up(emulated: Any, resident: int) -> None:
    emulated.set_resident_blocks(resident)
    assert wrong_seeds(emulated, split_sum_is_right(emulated, tiles=3, parts=4)) == []


def test_counting_before_everyone_has_stored_is_wrong(emulated: Any) -> None:
    emulated.set_fault("barrier")
    assert wrong_seeds(emulated, split_sum_is_right(emulated, tiles=3, parts=4))


def test_warp_functions(emulated: Any) -> None:
    x = torch.randperm(32, generator=torch.Generator().manual_seed(0)).int()
    lane = torch.arange(32)
    low, high = x[:16].sum(), x[16:].sum()
    expected = torch.stack(
        [
            x[lane * 7 % 32],
            x[lane // 8 * 8 + 5],
            x[lane ^ 12],
            x[torch.where(lane + 3 < 32, lane + 3, lane)],
            x[torch.where(lane % 16 >= 3, lane - 3, lane)],
            (x % 2 * 2**lane).sum().int().expand(32),
            (lane < 16).int(),
            (lane < 16).int(),
            torch.where(lane < 16, low, high).int(),
            x.max().expand(32),
            x.min().expand(32),
            x & 0x0F0F0F0F | 0x30303030,
            x.sum().int().expand(32),
            x.sum().int().expand(32),
        ]
    )

    def check() -> bool:
        out = torch.full((14, 32), -1, dtype=torch.int32)
        emulated.test_warp_functions(x, out)
        return torch.equal(out, expected)

    assert wrong_seeds(emulated, check) == []
