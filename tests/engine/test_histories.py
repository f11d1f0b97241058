"""Random histories of scheduler and block manager against a memory that remembers what was written into each slot.

Whatever comes, goes, fails or gives way: before a token is computed, all tokens before it are in its request's blocks;
nobody writes where another reads; no block is lost; every request ends. So it is too where a step is planned before the
tokens of the one before are known.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinyserve.config import SamplingParams
from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.pace import Pace
from tinyserve.engine.request import Request, Status
from tinyserve.engine.scheduler import Scheduler, Step

BLOCK_SIZE = 4


def _token(position: int) -> int:
    """Of the output, there; as guessed, or not."""
    return position % 4


def _is_end(request: Request) -> bool:
    """A request that ends before its last token, which nobody has known ahead."""
    return request.id % 3 == 0 and request.num_output_tokens == 5


class Histories(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(4, 14),
        max_batch_tokens=st.integers(1, 24),
        max_num_requests=st.integers(1, 6),
        keeps_prefixes=st.booleans(),
        num_drafts=st.integers(0, 3),
        costs=st.none() | st.tuples(st.floats(0.001, 1.0), st.floats(0.001, 1.0)),
        looks_ahead=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        max_batch_tokens: int,
        max_num_requests: int,
        keeps_prefixes: bool,
        num_drafts: int,
        costs: tuple[float, float] | None,
        looks_ahead: bool,
    ) -> None:
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, keeps_prefixes)
        pace = Pace(2.0)
        if costs is not None:
            pace.observe(1, 0, costs[0])
            pace.observe(0, 1, costs[1])

        def draft(request: Request, limit: int) -> tuple[int, ...]:
            """Right for some positions, see _execute."""
            return tuple(at % 3 for at in range(request.num_tokens, request.num_tokens + min(limit, num_drafts)))

        self.looks_ahead = looks_ahead
        if looks_ahead:
            num_drafts = 0
        requests = min(max_num_requests, max_batch_tokens)
        self.scheduler = Scheduler(self.blocks, pace, max_batch_tokens, requests, draft if num_drafts else None)
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}  # (block, offset) -> all tokens up to the one there
        self.alive: list[Request] = []
        self.num_requests = 0
        self.in_flight: list[tuple[Request, tuple[int, ...]]] = []  # whose tokens are unread, and their drafts

    @rule(
        length=st.integers(1, 40),
        max_new=st.integers(1, 30),
        family=st.integers(0, 1),
        fork=st.integers(0, 40),
        priority=st.integers(0, 2),
    )
    def arrive(self, length: int, max_new: int, family: int, fork: int, priority: int) -> None:
        """Prompts of one family are equal up to where one of them forks."""
        capacity = self.blocks.num_blocks * BLOCK_SIZE
        length = min(length, capacity - 1)
        prompt = [1000 * family + index if index < fork else 7000 + fork for index in range(length)]
        params = SamplingParams(max_new_tokens=min(max_new, capacity - length))
        request = Request(self.num_requests, prompt, params, priority)
        self.num_requests += 1
        self.scheduler.add(request)
        self.alive.append(request)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        request = self.alive.pop(which % len(self.alive))
        self.scheduler.finish(request)
        self.scheduler.finish(request)

    @precondition(lambda self: self.alive)
    @rule(times=st.integers(1, 12))
    def run_steps(self, times: int) -> None:
        for _ in range(times):
            step = self.scheduler.next_step()
            # with nothing to plan, those that are left wait for their last tokens
            assert (step is not None) == bool(self.alive) or self.in_flight
            due = [] if step is None else self._launch(step)
            self._read()
            self.in_flight = due
            if not self.looks_ahead:
                self._read()

    @precondition(lambda self: self.alive)
    @rule(sheds=st.booleans())
    def fail_in_a_step(self, sheds: bool) -> None:
        step = self.scheduler.next_step()
        if step is not None:
            self._write(step)  # it may have come that far
        is_shed = step is not None and sheds and self.scheduler.shed(step)
        self._read()
        if step is None or is_shed:
            return
        for chunk in step.chunks:
            if chunk.request in self.alive:
                self.scheduler.finish(chunk.request)
                self.alive.remove(chunk.request)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        if not hasattr(self, "blocks"):
            return
        owned: dict[int, list[tuple[Request, int]]] = {}
        for request in self.alive:
            assert len(set(request.block_ids)) == len(request.block_ids)
            for index, block in enumerate(request.block_ids):
                owned.setdefault(block, []).append((request, index))
        assert len(owned) + self.blocks.num_free == self.blocks.num_blocks, "a block is lost or has come twice"
        for block, owners in owned.items():
            assert self.blocks._num_users[block] == len(owners)
            if len(owners) > 1:
                for request, index in owners:
                    assert (index + 1) * BLOCK_SIZE <= request.num_computed, "a block is shared that is still written"
        for key, block in self.blocks._by_key.items():
            text = self.memory[block, BLOCK_SIZE - 1]
            reader = Request(-1, list(text), SamplingParams())
            found = self.blocks._key(reader, len(text) // BLOCK_SIZE - 1)
            assert found == key, "a block can be found by what it does not hold"

    def teardown(self) -> None:
        if not hasattr(self, "blocks"):
            return
        for _ in range(20_000):
            if not self.alive:
                break
            self.run_steps(1)
        assert not self.alive, "a request was starved"
        assert self.blocks.num_free == self.blocks.num_blocks
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, 0)

    def _launch(self, step: Step) -> list[tuple[Request, tuple[int, ...]]]:
        self._write(step)
        due = [(chunk.request, chunk.drafts) for chunk in step.chunks if chunk.is_last]
        self.scheduler.complete(step)
        for request, _ in due:
            request.num_unread += 1
        return due

    def _read(self) -> None:
        """The requests that a step in flight was for, and that have not ended since, get their tokens."""
        due, self.in_flight = self.in_flight, []
        for request, drafts in due:
            request.num_unread -= 1
            if request not in self.alive:
                continue
            for draft in (*drafts, None):
                token = _token(len(request.token_ids))
                request.token_ids.append(token)
                if len(request.token_ids) == request.max_tokens or _is_end(request):
                    self.scheduler.finish(request)
                    self.alive.remove(request)
                if token != draft or request.status is Status.FINISHED:
                    break
                request.num_computed += 1

    def _write(self, step: Step) -> None:
        requests = [chunk.request for chunk in step.chunks]
        assert len(set(requests)) == len(requests)
        for chunk in step.chunks:
            request, first = chunk.request, chunk.request.num_computed
            assert request.status is Status.RUNNING
            assert chunk.num_tokens >= 1
            known = request.token_ids + [_token(request.num_tokens - 1)] * request.num_unread
            for position in range(first):
                assert self.memory[self._slot(request, position)] == tuple(known[: position + 1])
            tokens = (*known[: first + chunk.num_tokens], *chunk.drafts)
            for position in range(first, first + chunk.num_rows):
                self.memory[self._slot(request, position)] = tokens[: position + 1]

    @staticmethod
    def _slot(request: Request, position: int) -> tuple[int, int]:
        return request.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
