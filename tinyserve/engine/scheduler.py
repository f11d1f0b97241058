"""Chooses what the next engine step runs.

A step is a flat batch under a token budget: one token of every running request that decodes, then chunks of prompts
that are not yet computed, then new requests in the order they came, as long as there are blocks. When blocks run out,
the newest request gives way and is computed again later. The scheduler moves requests between queues and asks
BlockManager for memory. It knows no tensors, no model and no HTTP, so its tests need none.
"""

from collections import deque
from dataclasses import dataclass

from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.request import Request, Status


@dataclass(frozen=True)
class Chunked:
    """The next `num_tokens` tokens of one request, starting where its cache ends."""

    request: Request
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """After this chunk every known token is computed, so the model's output is the next one."""
        return self.num_tokens == self.request.num_pending


@dataclass(frozen=True)
class Step:
    chunks: tuple[Chunked, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    def __init__(self, blocks: BlockManager, max_batch_tokens: int, max_num_requests: int) -> None:
        self._blocks = blocks
        self._max_batch_tokens = max_batch_tokens
        self._max_num_requests = max_num_requests
        self._waiting: deque[Request] = deque()  # in order of arrival
        self._running: list[Request] = []  # in order of arrival

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running(self) -> tuple[Request, ...]:
        return tuple(self._running)

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ValueError: it could not run even alone.
        """
        capacity = self._blocks.num_blocks * self._blocks.block_size
        if request.max_tokens > capacity:
            raise ValueError(f"a request of {request.max_tokens} tokens does not fit in a KV cache of {capacity}")
        self._waiting.append(request)

    def next_step(self) -> Step | None:
        """Plans a step and gives its requests the blocks they need; None when there is nothing to do."""
        chunks: list[Chunked] = []
        budget = self._max_batch_tokens - self._decode(chunks)
        budget -= self._continue_prefill(chunks, budget)
        self._admit(chunks, budget)
        return Step(tuple(chunks)) if chunks else None

    def finish(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees its blocks at once. Harmless when it is finished already."""
        if request.status is Status.RUNNING:
            self._running.remove(request)
        elif request.status is Status.WAITING and request in self._waiting:
            self._waiting.remove(request)
        request.status = Status.FINISHED
        self._blocks.release(request)

    def _decode(self, chunks: list[Chunked]) -> int:
        """One token for each request that only lacks its newest one. Returns the tokens planned."""
        planned = 0
        for request in self._running[:]:
            if planned == self._max_batch_tokens:
                break
            if request.status is Status.RUNNING and request.num_pending == 1 and self._make_room(request):
                chunks.append(Chunked(request, 1))
                planned += 1
        return planned

    def _make_room(self, request: Request) -> bool:
        """Out of blocks, the newest request gives way: it loses the least work. False: that was `request` itself."""
        while not self._blocks.try_grow(request, request.num_tokens):
            newest = self._running[-1]
            self._preempt(newest)
            if newest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self._blocks.release(request)
        request.status = Status.WAITING
        self._waiting.appendleft(request)

    def _continue_prefill(self, chunks: list[Chunked], budget: int) -> int:
        """Prompts begun in an earlier step; their blocks are theirs since admission. Returns the tokens planned."""
        planned = 0
        for request in self._running:
            if request.num_pending > 1 and planned < budget:
                num_tokens = min(request.num_pending, budget - planned)
                chunks.append(Chunked(request, num_tokens))
                planned += num_tokens
        return planned

    def _admit(self, chunks: list[Chunked], budget: int) -> None:
        while budget > 0 and self._waiting and len(self._running) < self._max_num_requests:
            request = self._waiting[0]
            # Every running request will soon ask for one more block: without that reserve, a request would be admitted
            # only to be preempted a few steps later.
            reserve = len(self._running)
            if self._blocks.num_missing(request, request.num_tokens) + reserve > self._blocks.num_free:
                return
            self._blocks.try_grow(request, request.num_tokens)
            self._waiting.popleft()
            request.status = Status.RUNNING
            self._running.append(request)
            num_tokens = min(request.num_pending, budget)
            chunks.append(Chunked(request, num_tokens))
            budget -= num_tokens
