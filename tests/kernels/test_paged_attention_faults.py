"""Mistakes that the checks of attention must see: each is made on purpose, in either order of threads.

Those of instructions are the emulator's (emulator/faults.h), made in a process of their own: what a kernel without
barriers does to its memory is then nobody else's. A mask that is off by one is asked for instead: what the kernel then
computes is what one with that mistake would, and it must be further from the right result than the tolerance is wide.
"""

import os
from collections.abc import Callable

import pytest
import reference
import torch
from kernels.test_paged_attention import TOLERANCE, Batch, make_batch
from kernels.test_rope_paged_attention import make_step
from torch import Tensor

from tinyserve import ops

CUDA_OP = "paged_attention"


def is_right(out: Tensor, expected: Tensor) -> bool:
    return reference.relative_error(out.cpu(), expected) < TOLERANCE[out.dtype]  # false of NaN


def is_right_with(fault: str, attend: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether a process that makes the mistake gets the right result; false where it gets none."""
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)  # those of the parent are not here
            torch.ops.tinyserve_emulated.set_fault(fault)
            os._exit(0 if is_right(attend(), expected) else 1)
        finally:
            os._exit(2)
    return os.waitpid(process, 0)[1] == 0


def cut(dtype: torch.dtype = torch.float16) -> Batch:
    """Decoding a context that several CTAs share, whose parts have maxima far from each other."""
    batch = make_batch([(1, 400), (1, 9)], 8, 2, dtype=dtype)
    return batch._replace(q=batch.q * 3)


def prompt(dtype: torch.dtype = torch.float16) -> Batch:
    return make_batch([(70, 130), (1, 40)], 8, 2, dtype=dtype)


@pytest.fixture(autouse=True)
def _emulated_faults(request: pytest.FixtureRequest) -> None:
    if "fault" in request.fixturenames and not request.node.callspec.params["device"].startswith("emulated"):
        pytest.skip("mistakes are made in the emulator alone")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(
    ("fault", "work"),
    [
        *((fault, work) for fault in ("", "barrier", "cp_async_wait", "fragment") for work in (cut, prompt)),
        ("weights", cut),
    ],
)
def test_a_seeded_fault_is_seen(
    fault: str, work: Callable[[torch.dtype], Batch], dtype: torch.dtype, device: str
) -> None:
    batch = work(dtype)
    assert is_right_with(fault, batch.attend, batch.expected()) == (fault == "")


@pytest.mark.parametrize("codes", [None, torch.int8], ids=["16 bits", "int8"])
@pytest.mark.parametrize("fault", ["", "barrier", "cp_async_wait", "fragment", "weights"])
def test_a_seeded_fault_is_seen_where_queries_come_unrotated(
    fault: str, codes: torch.dtype | None, device: str
) -> None:
    step = make_step([330, 9], 8, 2, codes=codes)
    step = step._replace(qkv=step.qkv * 2)
    expected = step.to(device).in_two_calls()
    assert is_right_with(fault, lambda: ops.rope_paged_attention(*step.to(device)), expected) == (fault == "")


@pytest.mark.parametrize("work", [cut, prompt])
@pytest.mark.parametrize("window", [39, 41])
def test_a_window_that_is_off_by_one_is_seen(window: int, work: Callable[[], Batch], device: str) -> None:
    batch = work()._replace(window=40)
    assert is_right(batch.to(device).attend(), batch.expected())
    assert not is_right(batch._replace(window=window).to(device).attend(), batch.expected())


def test_a_causal_edge_that_is_off_by_one_is_seen(device: str) -> None:
    """Each query sees one key less: its own is missing."""
    batch = prompt()
    out = batch._replace(context_lens=batch.context_lens - 1).to(device).attend()
    assert not is_right(out, batch.expected())
