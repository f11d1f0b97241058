"""The concurrency limit: counted right whatever becomes of those who hold a permit or wait for one."""

import asyncio

import pytest

from tinyserve.engine.generator import RequestError
from tinyserve.serve.admission import Admission


class Holder:
    """A task that holds a permit until told to end."""

    def __init__(self, admission: Admission) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._hold(admission))

    async def _hold(self, admission: Admission) -> None:
        async with admission.permit():
            self.entered.set()
            await self.leave.wait()

    async def end(self) -> None:
        self.leave.set()
        await self.task


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_at_once_and_all_in_the_end() -> None:
    lengths: list[int] = []
    admission = Admission(2, 100, lambda: lengths.append(admission.queue_length))
    holders = [Holder(admission) for _ in range(5)]
    await settle()
    assert [holder.entered.is_set() for holder in holders] == [True, True, False, False, False]
    assert admission.queue_length == 5
    for holder in holders:
        await holder.end()
    assert admission.queue_length == 0
    assert lengths == [1, 2, 3, 4, 5, 4, 3, 2, 1, 0]


async def test_one_who_leaves_while_waiting_leaves_no_trace() -> None:
    admission = Admission(1, 100, lambda: None)
    first, gone, last = (Holder(admission) for _ in range(3))
    await settle()
    gone.task.cancel()
    await settle()
    assert admission.queue_length == 2
    await first.end()
    await settle()
    assert last.entered.is_set()
    await last.end()
    assert admission.queue_length == 0


async def test_a_permit_comes_back_when_its_holder_fails_or_is_cancelled() -> None:
    admission = Admission(1, 100, lambda: None)
    with pytest.raises(ZeroDivisionError):
        async with admission.permit():
            _ = 1 / 0
    held = Holder(admission)
    await settle()
    held.task.cancel()
    await settle()
    async with admission.permit():
        assert admission.queue_length == 1
    assert admission.queue_length == 0


async def test_leaving_at_the_moment_of_admission_gives_the_permit_on() -> None:
    admission = Admission(1, 100, lambda: None)
    first, second, third = (Holder(admission) for _ in range(3))
    await settle()
    first.leave.set()
    await first.task  # the permit is on its way to the second, which has not run yet
    second.task.cancel()
    await settle()
    assert third.entered.is_set()
    await third.end()
    assert admission.queue_length == 0


async def test_one_too_many_is_refused() -> None:
    admission = Admission(1, 2, lambda: None)
    holders = [Holder(admission) for _ in range(2)]
    await settle()
    with pytest.raises(RequestError, match="2 requests are open, at most 2 may be") as caught:
        async with admission.permit():
            pass
    assert caught.value.code == 42903
    assert admission.queue_length == 2
    for holder in holders:
        await holder.end()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="--limit-model-concurrency must be at least 1, got 0"):
        Admission(0, 1, lambda: None)
