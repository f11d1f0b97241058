"""Blocks and the prefixes they hold, without tensors: what is found again, what is given away first, what is shared."""

from tinyserve.config import SamplingParams
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.request import Request

BLOCK_SIZE = 4


def make_request(token_ids: list[int], contents: dict[int, bytes] | None = None) -> Request:
    return Request(0, list(token_ids), SamplingParams(), contents=contents or {})


def computed(blocks: BlockManager, token_ids: list[int], contents: dict[int, bytes] | None = None) -> Request:
    """A request that has run: all its tokens are in the cache."""
    request = make_request(token_ids, contents)
    assert blocks.try_start(request, 0)
    request.num_computed = request.num_tokens
    blocks.keep(request)
    return request


def num_found(blocks: BlockManager, token_ids: list[int], contents: dict[int, bytes] | None = None) -> int:
    """Tokens of a new request that the cache already holds."""
    request = make_request(token_ids, contents)
    assert blocks.try_start(request, 0)
    found = request.num_computed
    blocks.release(request)
    return found


def test_a_prefix_is_shared_while_its_owner_runs_and_found_after_it_has_left() -> None:
    blocks = BlockManager(16, BLOCK_SIZE)
    first = computed(blocks, list(range(10)))
    second = make_request([*range(10), 77, 78])
    assert blocks.try_start(second, 0)
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]  # a block that is still being written stays its owner's
    assert second.num_computed == 8
    assert blocks.num_free == 16 - 4
    blocks.release(first)
    blocks.release(second)
    assert blocks.num_free == 16
    assert num_found(blocks, list(range(10))) == 8


def test_the_last_token_is_always_left_to_compute() -> None:
    blocks = BlockManager(16, BLOCK_SIZE)
    blocks.release(computed(blocks, list(range(8))))
    assert num_found(blocks, list(range(8))) == 4
    assert num_found(blocks, list(range(9))) == 8


def test_only_equal_beginnings_match_not_equal_middles() -> None:
    blocks = BlockManager(16, BLOCK_SIZE)
    blocks.release(computed(blocks, list(range(12))))
    assert num_found(blocks, [99, *range(1, 12)]) == 0
    assert num_found(blocks, [*range(4), 99, *range(5, 12), 1]) == 4
    assert num_found(blocks, [*range(4, 12), 1]) == 0


def test_what_placeholders_stand_for_is_part_of_the_content() -> None:
    blocks = BlockManager(32, BLOCK_SIZE)
    tokens = [1, 2, 3, 4, 5, 50, 50, 50, 50, 50, 6, 7, 8]
    blocks.release(computed(blocks, tokens, {5: b"a cat"}))
    assert num_found(blocks, tokens, {5: b"a cat"}) == 12
    assert num_found(blocks, tokens, {5: b"a dog"}) == 4
    assert num_found(blocks, tokens) == 4


def test_nothing_is_found_before_it_is_computed_and_nothing_of_a_request_that_failed() -> None:
    blocks = BlockManager(16, BLOCK_SIZE)
    request = make_request(list(range(12)))
    assert blocks.try_start(request, 0)
    assert num_found(blocks, list(range(12))) == 0
    request.num_computed = 5
    blocks.release(request)
    assert num_found(blocks, list(range(12))) == 4


def test_the_least_recently_used_content_goes_first_and_a_prefix_from_its_end() -> None:
    blocks = BlockManager(6, BLOCK_SIZE)
    old, new = list(range(12)), list(range(100, 112))
    blocks.release(computed(blocks, old))
    blocks.release(computed(blocks, new))
    assert num_found(blocks, [*old, 1]) == 12  # used again, it is the younger one now; its 13th token costs new's end
    assert num_found(blocks, [*new, 1]) == 8
    assert blocks.num_free == 6


def test_content_in_use_is_never_given_away() -> None:
    blocks = BlockManager(4, BLOCK_SIZE)
    held = computed(blocks, list(range(8)))
    other = make_request(list(range(50, 62)))
    assert not blocks.try_start(other, 0)
    assert other.block_ids == []
    twin = make_request([*range(8), 9])
    assert not blocks.try_start(twin, reserve=2)
    assert blocks.try_start(twin, reserve=1)
    assert twin.block_ids[:2] == held.block_ids
    blocks.release(held)
    assert not blocks.try_grow(twin, 20)
    assert blocks.try_grow(twin, 16)
    assert blocks.num_free == 0
    blocks.release(twin)
    assert blocks.num_free == 4


def test_a_known_prefix_that_nobody_uses_counts_against_the_free_blocks() -> None:
    blocks = BlockManager(3, BLOCK_SIZE)
    blocks.release(computed(blocks, list(range(12))))
    request = make_request([*range(12), 1, 2])
    assert not blocks.try_start(request, 0)
    assert blocks.num_free == 3


def test_twins_that_were_computed_at_once_keep_their_own_copies() -> None:
    blocks = BlockManager(8, BLOCK_SIZE)
    twins = [make_request(list(range(9))) for _ in range(2)]
    for twin in twins:
        assert blocks.try_start(twin, 0)
    for twin in twins:
        twin.num_computed = 9
        blocks.keep(twin)
    assert not set(twins[0].block_ids) & set(twins[1].block_ids)
    for twin in twins:
        blocks.release(twin)
    assert blocks.num_free == 8
    assert blocks.num_idle == 2


def test_without_prefixes_nothing_is_shared() -> None:
    blocks = BlockManager(8, BLOCK_SIZE, keeps_prefixes=False)
    blocks.release(computed(blocks, list(range(12))))
    assert num_found(blocks, list(range(12))) == 0
    assert blocks.num_idle == 0


def test_growing_changes_nothing_when_blocks_are_short() -> None:
    blocks = BlockManager(2, BLOCK_SIZE)
    request = make_request([1, 2, 3, 4])
    assert blocks.try_start(request, 0)
    assert not blocks.try_grow(request, 13)
    assert len(request.block_ids) == 1
    assert blocks.num_free == 1
