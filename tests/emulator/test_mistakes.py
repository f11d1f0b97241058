"""The emulator sees what it is there for: each mistake in a kernel gives an error or a wrong result."""

from collections.abc import Callable

import pytest
import torch
from emulator import checks, guarded
from emulator.machine import Machine

Check = Callable[[Machine], checks.Check]


def gemm(machine: Machine) -> checks.Check:
    return checks.gemm(machine, torch.float16, False, 72, 40, 136)


def split_sum(machine: Machine) -> checks.Check:
    return checks.split_sum(machine, tiles=3, parts=4)


def ring_sum(machine: Machine) -> checks.Check:
    return checks.ring_sum(machine, 11)


def cluster_gemm(machine: Machine, mistake: int = 0) -> checks.Check:
    return checks.cluster_gemm(machine, torch.float16, 24, m=20, n=72, k=328, mistake=mistake)


FAULTS = [  # seen in every order of threads
    ("barrier", gemm),
    ("cp_async_wait", gemm),
    ("fragment", gemm),
    ("barrier", ring_sum),
    ("mbarrier_wait", ring_sum),
    ("barrier", cluster_gemm),
    ("mbarrier_wait", cluster_gemm),
    ("wgmma_wait", cluster_gemm),
    ("swizzle", cluster_gemm),
]


@pytest.mark.parametrize(("fault", "kernel"), FAULTS)
def test_a_fault_is_seen_in_every_order(emulated: Machine, fault: str, kernel: Check) -> None:
    emulated.ops.set_fault(fault)
    assert emulated.wrong_seeds(kernel(emulated)) == list(emulated.seeds)


@pytest.mark.parametrize(
    ("fault", "kernel"), [("barrier", checks.rms_norm), ("barrier", split_sum), ("threadfence", split_sum)]
)
def test_a_fault_is_seen_in_some_order(emulated: Machine, fault: str, kernel: Check) -> None:
    assert emulated.wrong_seeds(kernel(emulated)) == []
    emulated.ops.set_fault(fault)
    assert emulated.wrong_seeds(kernel(emulated))


MISTAKES = {  # by their numbers in kernels.h
    1: "wgmma without wgmma_fence",
    2: "A changed after wgmma_fence",
    3: "A changed before the product was waited for",
    4: "D was written before the product was waited for",
    6: r"deadlock, no thread can go on: .* mbarrier_wait \(such as thread \(\d+, 0, 0\) of block",
    9: "initialisation was not fenced",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(emulated: Machine, mistake: int) -> None:
    with pytest.raises(RuntimeError, match=MISTAKES[mistake]):
        cluster_gemm(emulated, mistake)()


@pytest.mark.parametrize("mistake", [5, 7, 8])
def test_a_mistake_makes_most_results_wrong(emulated: Machine, mistake: int) -> None:
    assert len(emulated.wrong_seeds(cluster_gemm(emulated, mistake))) > len(emulated.seeds) / 2


@pytest.mark.parametrize("size", [64, 4096, 5000])
def test_a_read_past_the_end_is_stopped(emulated: Machine, size: int) -> None:
    x, y = torch.arange(float(size)), torch.zeros(size + 4)
    copy = emulated.ops.test_copy.default
    guarded.call(copy, x, y, size)
    assert torch.equal(y[:size], x)
    with pytest.raises(RuntimeError, match=r"copy: access to memory at .*, which is not there, in thread"):
        guarded.call(copy, x, y, size + 4)


def test_an_unknown_fault_or_gpu_is_refused(emulated: Machine) -> None:
    with pytest.raises(ValueError, match="no fault is called everything"):
        emulated.ops.set_fault("everything")
    with pytest.raises(ValueError, match="no such GPU"):
        emulated.ops.set_gpu(4, 70)
