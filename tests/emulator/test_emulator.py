"""The emulator computes what instructions mean, in every order of threads and blocks; mistakes it is for show."""

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from emulator import guarded

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


def ring_sum_is_right(ops: Any, chunks: int) -> Callable[[], bool]:
    x = torch.randn(chunks, 128, generator=torch.Generator().manual_seed(0))

    def check() -> bool:
        out = torch.full((128,), torch.nan)
        ops.test_ring_sum(x, out)
        return bool(reference.relative_error(out, x.double().sum(0)) < 1e-6)

    return check


def test_bulk_copies_through_a_ring_of_barriers(emulated: Any) -> None:
    assert wrong_seeds(emulated, ring_sum_is_right(emulated, 11)) == []


@pytest.mark.parametrize("fault", ["barrier", "mbarrier_wait"])
def test_a_ring_with_a_mistake_is_wrong(emulated: Any, fault: str) -> None:
    emulated.set_fault(fault)
    assert wrong_seeds(emulated, ring_sum_is_right(emulated, 11)) == list(SEEDS)


def cluster_gemm_is_right(
    ops: Any, dtype: torch.dtype, tile_m: int, m: int, n: int, k: int, mistake: int = 0
) -> Callable[[], bool]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(n, k, generator=generator).to(dtype)
    x = torch.randn(m, k, generator=generator).to(dtype)
    expected = x.double() @ w.double().T

    def check() -> bool:
        out = torch.full((m, n), torch.nan)
        ops.hide_before_wait(x)
        ops.test_cluster_gemm(w, x, out, tile_m, mistake)
        return bool(reference.relative_error(out, expected) < 1e-6)

    return check


@pytest.mark.parametrize("tile_m", [8, 24, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_warpgroup_products_of_tensor_copies(emulated: Any, dtype: torch.dtype, tile_m: int) -> None:
    check = cluster_gemm_is_right(emulated, dtype, tile_m, m=tile_m + 3, n=72, k=328)
    assert wrong_seeds(emulated, check, range(1, 4)) == []


@pytest.mark.parametrize("fault", ["barrier", "mbarrier_wait", "wgmma_wait", "swizzle"])
def test_a_cluster_gemm_with_a_fault_is_wrong(emulated: Any, fault: str) -> None:
    emulated.set_fault(fault)
    check = cluster_gemm_is_right(emulated, torch.float16, 24, m=20, n=72, k=328)
    assert wrong_seeds(emulated, check) == list(SEEDS)


# As in kernels.h: the message, or None where the result is wrong instead.
MISTAKES = {
    1: "wgmma without wgmma_fence",
    2: "A changed after wgmma_fence",
    3: "A changed before the product was waited for",
    4: "D was written before the product was waited for",
    6: "deadlock, no thread can go on: .* mbarrier_wait",
    9: "initialisation was not fenced",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(emulated: Any, mistake: int) -> None:
    check = cluster_gemm_is_right(emulated, torch.float16, 24, m=20, n=72, k=328, mistake=mistake)
    with pytest.raises(RuntimeError, match=MISTAKES[mistake]):
        check()


@pytest.mark.parametrize("mistake", [5, 7, 8])
def test_a_mistake_makes_the_result_wrong(emulated: Any, mistake: int) -> None:
    check = cluster_gemm_is_right(emulated, torch.float16, 24, m=20, n=72, k=328, mistake=mistake)
    assert len(wrong_seeds(emulated, check)) > len(SEEDS) / 2


@pytest.mark.parametrize("size", [64, 4096, 5000])
def test_a_read_past_the_end_is_stopped(emulated: Any, size: int) -> None:
    x, y = torch.arange(float(size)), torch.zeros(size + 4)
    guarded.call(emulated.test_copy.default, x, y, size)
    assert torch.equal(y[:size], x)
    with pytest.raises(RuntimeError, match=r"copy: access to memory at .*, which is not there, in thread"):
        guarded.call(emulated.test_copy.default, x, y, size + 4)


def test_an_unknown_fault_or_gpu_is_refused(emulated: Any) -> None:
    with pytest.raises(ValueError, match="no fault is called everything"):
        emulated.set_fault("everything")
    with pytest.raises(ValueError, match="no such GPU"):
        emulated.set_gpu(4, 70)
