"""Scheduler and block manager, without any tensor: who runs, who waits, who gives way, and that no block is lost."""

import random

import pytest

from tinyserve.config import SamplingParams
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.request import Request, Status
from tinyserve.engine.scheduler import Scheduler, Step

BLOCK_SIZE = 4


def make_request(request_id: int, num_prompt_tokens: int, max_new_tokens: int = 8) -> Request:
    return Request(request_id, [7] * num_prompt_tokens, SamplingParams(max_new_tokens=max_new_tokens))


def make_scheduler(num_blocks: int = 16, max_batch_tokens: int = 64, max_num_requests: int = 8) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, BLOCK_SIZE), max_batch_tokens, max_num_requests)


def execute(step: Step | None) -> list[Request]:
    """What the model runner and the sampler do to the requests. Returns those that got a token."""
    assert step is not None
    due = []
    for chunk in step.chunks:
        assert chunk.num_tokens >= 1
        assert len(chunk.request.block_ids) * BLOCK_SIZE >= chunk.request.num_computed + chunk.num_tokens
        is_last = chunk.is_last
        chunk.request.num_computed += chunk.num_tokens
        if is_last:
            chunk.request.token_ids.append(9)
            due.append(chunk.request)
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
    assert [request.id for request in execute(step)] == [0, 1, 2]
    assert sizes(scheduler.next_step()) == [(0, 1), (1, 1), (2, 1)]


def test_a_long_prompt_runs_in_chunks_beside_the_decodes_of_others() -> None:
    scheduler = make_scheduler(max_batch_tokens=6)
    scheduler.add(make_request(0, 2))
    scheduler.add(make_request(1, 13))
    step = scheduler.next_step()
    assert sizes(step) == [(0, 2), (1, 4)]
    assert [request.id for request in execute(step)] == [0]
    step = scheduler.next_step()
    assert sizes(step) == [(0, 1), (1, 5)]
    assert [request.id for request in execute(step)] == [0]
    step = scheduler.next_step()
    assert sizes(step) == [(0, 1), (1, 4)]
    assert [request.id for request in execute(step)] == [0, 1]


def test_the_number_of_running_requests_is_limited() -> None:
    scheduler = make_scheduler(max_num_requests=2)
    requests = [make_request(request_id, 2) for request_id in range(3)]
    for request in requests:
        scheduler.add(request)
    execute(scheduler.next_step())
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    scheduler.finish(requests[0])
    assert sizes(scheduler.next_step()) == [(1, 1), (2, 2)]


def test_a_request_waits_until_its_whole_prompt_has_blocks() -> None:
    scheduler = make_scheduler(num_blocks=4)
    first, second = make_request(0, 12, max_new_tokens=2), make_request(1, 8)
    scheduler.add(first)
    scheduler.add(second)
    execute(scheduler.next_step())
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.finish(first)
    assert sizes(scheduler.next_step()) == [(1, 8)]


def test_out_of_blocks_the_newest_request_gives_way_and_keeps_its_tokens() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, new = make_request(0, 8, max_new_tokens=12), make_request(1, 7, max_new_tokens=12)
    scheduler.add(old)
    scheduler.add(new)
    execute(scheduler.next_step())  # 2 + 2 blocks
    execute(scheduler.next_step())  # the old one takes the last block
    execute(scheduler.next_step())  # the new one would need a third: it gives way
    assert new.status is Status.WAITING
    assert new.block_ids == []
    assert new.num_tokens == 9
    assert new.num_computed == 0
    scheduler.finish(old)
    assert sizes(scheduler.next_step()) == [(1, 9)]  # prompt and output together


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler = make_scheduler(num_blocks=2)
    with pytest.raises(ValueError, match="a request of 9 tokens does not fit in a KV cache of 8"):
        scheduler.add(make_request(0, 4, max_new_tokens=5))


@pytest.mark.parametrize("computed", [False, True], ids=["waiting", "running"])
def test_finishing_frees_the_blocks_at_once_and_twice_is_harmless(computed: bool) -> None:
    blocks = BlockManager(4, BLOCK_SIZE)
    scheduler = Scheduler(blocks, 64, 8)
    request = make_request(0, 6)
    scheduler.add(request)
    if computed:
        execute(scheduler.next_step())
        assert blocks.num_free == 2
    scheduler.finish(request)
    scheduler.finish(request)
    assert blocks.num_free == 4
    assert scheduler.next_step() is None


def test_growing_changes_nothing_when_blocks_are_short() -> None:
    blocks = BlockManager(2, BLOCK_SIZE)
    request = make_request(0, 4)
    assert blocks.try_grow(request, 4)
    assert not blocks.try_grow(request, 13)
    assert len(request.block_ids) == 1
    assert blocks.num_free == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_lose_no_block_share_none_and_finish_every_request(seed: int) -> None:
    random_ = random.Random(seed)
    num_blocks = random_.randint(4, 12)
    blocks = BlockManager(num_blocks, BLOCK_SIZE)
    scheduler = Scheduler(blocks, random_.randint(1, 20), random_.randint(1, 6))
    alive: list[Request] = []
    num_left = 30
    for _ in range(5000):
        if num_left and random_.random() < 0.3:
            prompt = random_.randint(1, num_blocks * BLOCK_SIZE - 1)
            new = random_.randint(1, num_blocks * BLOCK_SIZE - prompt)
            request = make_request(num_left, prompt, new)
            scheduler.add(request)
            alive.append(request)
            num_left -= 1
        if alive and random_.random() < 0.02:
            cancelled = alive.pop(random_.randrange(len(alive)))
            scheduler.finish(cancelled)
        if not alive:
            if not num_left:
                break
            continue
        step = scheduler.next_step()
        owned = [block for request in alive for block in request.block_ids]
        assert len(set(owned)) == len(owned), "a block has two owners"
        assert len(owned) + blocks.num_free == num_blocks, "a block is lost"
        ids = [chunk.request.id for chunk in step.chunks] if step else []
        assert len(set(ids)) == len(ids)
        for request in execute(step):
            if request.num_tokens == request.max_tokens:
                scheduler.finish(request)
                alive.remove(request)
    assert not alive, "a request was starved"
    assert blocks.num_free == num_blocks
