"""The kernels' threads: the same results for several callers at once, any thread count, and after a fork."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tinyserve import ops


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)  # more than the machine may have: some always come late
    yield
    torch.set_num_threads(before)


def make_operands() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 256), torch.randn(2000, 256)


def test_callers_at_once_do_not_disturb_each_other() -> None:
    x, weight = make_operands()
    inputs = [x * (i + 1) for i in range(4)]
    expected = [ops.linear(given, weight) for given in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(200):
            if not torch.equal(ops.linear(inputs[i], weight), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_thread_count_may_change_between_calls() -> None:
    x, weight = make_operands()
    expected = ops.linear(x, weight)
    for count in (1, 4, 2, 7, 1, 3):
        torch.set_num_threads(count)
        for _ in range(20):
            assert torch.equal(ops.linear(x, weight), expected)


@pytest.mark.filterwarnings("ignore:This process")  # python warns of forking beside threads; that is what is tested
def test_a_forked_process_computes_alone() -> None:
    x, weight = make_operands()
    expected = ops.linear(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(ops.linear(x, weight), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
