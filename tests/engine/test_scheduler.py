"""Scheduler and block manager, without any tensor: who runs, who waits, who gives way, and that no block is lost."""

import pytest

from tinyserve.config import SamplingParams
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.pace import Pace
from tinyserve.engine.request import Request, Status
from tinyserve.engine.scheduler import Scheduler, Step

BLOCK_SIZE = 4


def make_request(request_id: int, num_prompt_tokens: int, max_new_tokens: int = 8, priority: int = 0) -> Request:
    """Its tokens are its own, so that no two requests share a prefix."""
    prompt = [100 * request_id + index for index in range(num_prompt_tokens)]
    return Request(request_id, prompt, SamplingParams(max_new_tokens=max_new_tokens), priority)


def make_scheduler(
    num_blocks: int = 16, max_batch_tokens: int = 64, max_num_requests: int = 8, pace: Pace | None = None
) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, BLOCK_SIZE), pace or Pace(2.0), max_batch_tokens, max_num_requests)


def execute(scheduler: Scheduler, step: Step | None) -> list[Request]:
    """What the model runner and the sampler do to the requests. Returns those that got a token."""
    assert step is not None
    due = []
    for chunk in step.chunks:
        assert chunk.num_tokens >= 1
        assert len(chunk.request.block_ids) * BLOCK_SIZE >= chunk.request.num_computed + chunk.num_tokens
        if chunk.is_last:
            due.append(chunk.request)
    scheduler.complete(step)
    for request in due:
        request.token_ids.append(9)
    return due


def sizes(step: Step | None) -> list[tuple[int, int]]:
    return [] if step is None else [(chunk.request.id, chunk.num_tokens) for chunk in step.chunks]


def test_nothing_to_do_gives_no_step() -> None:
    assert make_scheduler().next_step() is None


def test_requests_are_admitted_in_order_and_then_decode_together() -> None:
    scheduler = make_scheduler()
    for request_id, length in enumerate((5, 1, 3)):
        scheduler.add(make_request(request_id, length))
    step = scheduler.next_step()
    assert sizes(step) == [(0, 5), (1, 1), (2, 3)]
    assert [request.id for request in execute(scheduler, step)] == [0, 1, 2]
    assert sizes(scheduler.next_step()) == [(0, 1), (1, 1), (2, 1)]


def test_a_long_prompt_runs_in_chunks_beside_the_decodes_of_others() -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    scheduler.add(make_request(0, 2))
    scheduler.add(make_request(1, 13))
    step = scheduler.next_step()
    assert sizes(step) == [(0, 2), (1, 4)]
    assert [request.id for request in execute(scheduler, step)] == [0]
    step = scheduler.next_step()
    assert sizes(step) == [(0, 1), (1, 5)]
    assert [request.id for request in execute(scheduler, step)] == [0]
    step = scheduler.next_step()
    assert sizes(step) == [(0, 1), (1, 4)]
    assert [request.id for request in execute(scheduler, step)] == [0, 1]


def test_the_number_of_running_requests_is_limited() -> None:
    scheduler = make_scheduler(max_num_requests=2)
    requests = [make_request(request_id, 2) for request_id in range(3)]
    for request in requests:
        scheduler.add(request)
    execute(scheduler, scheduler.next_step())
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    scheduler.finish(requests[0])
    assert sizes(scheduler.next_step()) == [(1, 1), (2, 2)]


def test_a_request_waits_until_its_whole_prompt_has_blocks() -> None:
    scheduler = make_scheduler(num_blocks=4)
    first, second = make_request(0, 12, max_new_tokens=2), make_request(1, 8)
    scheduler.add(first)
    scheduler.add(second)
    execute(scheduler, scheduler.next_step())
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.finish(first)
    assert sizes(scheduler.next_step()) == [(1, 8)]


def test_out_of_blocks_the_newest_request_gives_way_and_keeps_its_tokens() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, new = make_request(0, 8, max_new_tokens=12), make_request(1, 7, max_new_tokens=12)
    scheduler.add(old)
    scheduler.add(new)
    execute(scheduler, scheduler.next_step())  # 2 + 2 blocks
    execute(scheduler, scheduler.next_step())  # the old one takes the last block
    execute(scheduler, scheduler.next_step())  # the new one would need a third: it gives way
    assert new.status is Status.WAITING
    assert new.block_ids == []
    assert new.num_tokens == 9
    assert new.num_computed == 0
    scheduler.finish(old)
    assert sizes(scheduler.next_step()) == [(1, 1)]  # nobody has taken its blocks: what they hold need not run again


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler = make_scheduler(num_blocks=2)
    with pytest.raises(ValueError, match="a request of 9 tokens does not fit in a KV cache of 8"):
        scheduler.add(make_request(0, 4, max_new_tokens=5))


@pytest.mark.parametrize("computed", [False, True], ids=["waiting", "running"])
def test_finishing_frees_the_blocks_at_once_and_twice_is_harmless(computed: bool) -> None:
    blocks = BlockManager(4, BLOCK_SIZE)
    scheduler = Scheduler(blocks, Pace(2.0), 64, 8)
    request = make_request(0, 6)
    scheduler.add(request)
    if computed:
        execute(scheduler, scheduler.next_step())
        assert blocks.num_free == 2
    scheduler.finish(request)
    scheduler.finish(request)
    assert blocks.num_free == 4
    assert scheduler.next_step() is None


def test_a_lower_priority_number_goes_first_and_equals_in_order_of_arrival() -> None:
    scheduler = make_scheduler(max_num_requests=1)
    for request_id, priority in enumerate((1, 0, -2, 0)):
        scheduler.add(make_request(request_id, 2, priority=priority))
    order = []
    while (step := scheduler.next_step()) is not None:
        (request,) = execute(scheduler, step)
        order.append(request.id)
        scheduler.finish(request)
    assert order == [2, 1, 3, 0]


def test_out_of_blocks_the_least_important_request_gives_way_even_when_it_is_older() -> None:
    scheduler = make_scheduler(num_blocks=5)
    minor, major = make_request(0, 8, max_new_tokens=12, priority=1), make_request(1, 7, max_new_tokens=12)
    scheduler.add(minor)
    scheduler.add(major)
    for _ in range(3):
        execute(scheduler, scheduler.next_step())
    assert (minor.status, major.status) == (Status.WAITING, Status.RUNNING)


def test_short_prompts_pass_a_long_one_which_keeps_half_of_every_step() -> None:
    scheduler = make_scheduler(num_blocks=64, max_batch_tokens=16, pace=Pace(float("inf")))
    long = make_request(0, 100)
    scheduler.add(long)
    for request_id in range(1, 4):
        scheduler.add(make_request(request_id, 6))
    step = scheduler.next_step()
    assert sizes(step) == [(0, 8), (1, 6), (2, 2)]
    assert execute(scheduler, step)[0].id == 1
    step = scheduler.next_step()
    assert sizes(step) == [(1, 1), (0, 8), (2, 4), (3, 3)]
    execute(scheduler, step)
    for request_id in range(4, 40):  # a stream of short ones that never ends
        scheduler.add(make_request(request_id, 6))
        before = long.num_computed
        for request in execute(scheduler, scheduler.next_step()):
            if request is not long:
                scheduler.finish(request)
        if long.num_output_tokens:
            return
        assert long.num_computed - before >= 6
    pytest.fail("the long prompt was starved")


def test_prompts_of_equal_length_run_one_after_another() -> None:
    scheduler = make_scheduler(num_blocks=64, max_batch_tokens=16)
    for request_id in range(3):
        scheduler.add(make_request(request_id, 40))
    assert sizes(scheduler.next_step()) == [(0, 16)]


def test_nobody_overtakes_one_who_waits_for_memory() -> None:
    scheduler = make_scheduler(num_blocks=8)
    first, large, small = make_request(0, 16), make_request(1, 24), make_request(2, 2)
    for request in (first, large, small):
        scheduler.add(request)
    assert sizes(scheduler.next_step()) == [(0, 16)]
    scheduler.finish(first)
    assert sizes(scheduler.next_step()) == [(1, 24), (2, 2)]


def test_the_pace_limits_prompts_beside_decodes_and_alone_they_take_the_whole_step() -> None:
    pace = Pace(2.0)
    pace.observe(1, 0, 0.020)
    pace.observe(0, 64, 0.064)
    scheduler = make_scheduler(num_blocks=64, max_batch_tokens=64, pace=pace)
    scheduler.add(make_request(0, 64))
    assert sizes(scheduler.next_step()) == [(0, 64)]
    execute(scheduler, scheduler.next_step())
    scheduler.add(make_request(1, 50))
    assert sizes(scheduler.next_step()) == [(0, 1), (1, 20)]


def test_after_a_step_that_did_not_fit_the_next_has_half_of_it_and_no_token_is_lost() -> None:
    scheduler = make_scheduler(num_blocks=64, max_batch_tokens=8, max_num_requests=8)
    requests = [make_request(request_id, 1, max_new_tokens=20) for request_id in range(8)]
    for request in requests:
        scheduler.add(request)
    execute(scheduler, scheduler.next_step())
    step = scheduler.next_step()
    assert step is not None
    assert step.num_tokens == 8
    assert scheduler.shed(step)
    assert (scheduler.num_running, scheduler.num_waiting) == (4, 4)
    counts = []
    for _ in range(8):  # the size comes back token by token
        step = scheduler.next_step()
        execute(scheduler, step)
        assert step is not None
        counts.append(step.num_tokens)
    assert counts[0] == 4
    assert counts[-1] == 8
    assert all(request.token_ids[0] == 100 * request.id for request in requests)
    assert scheduler.num_waiting == 0


def test_a_step_of_one_token_cannot_become_smaller() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, 1))
    step = scheduler.next_step()
    assert step is not None
    assert not scheduler.shed(step)
