"""Chooses what the next engine step runs.

A step is a flat batch under a token budget: one token of every running request that decodes, then chunks of prompts
that are not yet computed, as long as there are blocks. When blocks run out, the least important and newest request
gives way and is computed again later. The scheduler moves requests between queues and asks BlockManager for memory and
Pace for the size of a step. It knows no tensors, no model and no HTTP, so its tests need none.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tinyserve.engine.block_manager import BlockManager
from tinyserve.engine.pace import Pace
from tinyserve.engine.request import Request, Status

WINDOW = 64  # waiting requests among which the shortest is looked for


@dataclass(frozen=True)
class Chunked:
    """The next `num_tokens` tokens of one request, starting where its cache ends."""

    request: Request
    num_tokens: int
    drafts: tuple[int, ...] = ()  # guesses at what follows, computed along so that they can be checked

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.drafts)

    @property
    def is_last(self) -> bool:
        """After this chunk every known token is computed, so the model's output is the next one."""
        return self.num_tokens == self.request.num_pending


@dataclass(frozen=True)
class Step:
    chunks: tuple[Chunked, ...]
    num_decodes: int  # tokens of requests whose prompts are computed, and drafts

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_rows for chunk in self.chunks)


Drafter = Callable[[Request, int], tuple[int, ...]]  # guesses at most so many tokens that may follow


class Scheduler:
    """Args: blocks; pace; max_batch_tokens of a step; max_num_requests running at once; draft, None: no guesses."""

    def __init__(
        self,
        blocks: BlockManager,
        pace: Pace,
        max_batch_tokens: int,
        max_num_requests: int,
        draft: Drafter | None = None,
    ) -> None:
        self._blocks = blocks
        self._pace = pace
        self._max_batch_tokens = max_batch_tokens
        self._max_num_requests = max_num_requests
        self._draft = draft
        self._batch_tokens = max_batch_tokens  # fewer after `shed`
        self._waiting: list[Request] = []  # both by rank
        self._running: list[Request] = []
        self.num_preemptions = 0  # since the start

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            ValueError: it could not run even alone.
        """
        capacity = self._blocks.num_blocks * self._blocks.block_size
        if request.max_tokens > capacity:
            raise ValueError(f"a request of {request.max_tokens} tokens does not fit in a KV cache of {capacity}")
        insort(self._waiting, request, key=_rank)

    def next_step(self) -> Step | None:
        """Plans a step and gives its requests the blocks they need; None when there is nothing to do."""
        decodes = self._decode()
        num_prompts = len(self._running) - len(decodes)
        if num_prompts:  # but not those that only wait to be told their last token
            num_prompts = sum(request.num_pending > 0 for request in self._running) - len(decodes)
        num_prompts += min(len(self._waiting), self._max_num_requests - len(self._running))
        num_decodes = sum(chunk.num_rows for chunk in decodes)
        budget = min(self._batch_tokens - num_decodes, self._pace.max_prefill(num_decodes, num_prompts))
        chunks = (*decodes, *self._prefill(int(budget), decodes))
        return Step(chunks, num_decodes) if chunks else None

    def complete(self, step: Step) -> None:
        """To be called when a step has been launched: for all that are launched later, its tokens are in the cache."""
        self._batch_tokens = min(self._batch_tokens + 1, self._max_batch_tokens)
        for chunk in step.chunks:
            chunk.request.num_computed += chunk.num_tokens
            self._blocks.keep(chunk.request)

    def shed(self, step: Step) -> bool:
        """After a step that did not fit in memory: the next ones have half of its tokens at most, then slowly more.

        Returns:
            False: it could not have been smaller.
        """
        if step.num_tokens == 1:
            return False
        self._batch_tokens = step.num_tokens // 2
        while len(self._running) > self._batch_tokens:
            self._preempt(self._running[-1])
        return True

    def finish(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees its blocks at once. Harmless when it is finished already."""
        if request.status is Status.RUNNING:
            self._running.remove(request)
        elif request.status is Status.WAITING and request in self._waiting:
            self._waiting.remove(request)
        request.status = Status.FINISHED
        self._blocks.release(request)

    def _decode(self) -> list[Chunked]:
        """One token for each request that only lacks its newest one."""
        chunks: list[Chunked] = []
        for request in self._running[:]:
            if len(chunks) == self._batch_tokens:
                break
            if request.status is Status.RUNNING and request.num_pending == 1 and self._make_room(request):
                chunks.append(Chunked(request, 1))
        return chunks if self._draft is None else self._with_drafts(chunks, self._draft)

    def _with_drafts(self, chunks: list[Chunked], draft: Drafter) -> list[Chunked]:
        """Adds guesses where there is room in the step and in memory; nobody gives way for a guess."""
        left = self._batch_tokens - len(chunks)
        drafted = []
        for chunk in chunks:
            request = chunk.request
            guess = draft(request, min(left, request.max_tokens - request.num_tokens - 1)) if left else ()
            if guess and self._blocks.try_grow(request, request.num_tokens + len(guess)):
                left -= len(guess)
                chunk = Chunked(request, 1, guess)
            drafted.append(chunk)
        return drafted

    def _make_room(self, request: Request) -> bool:
        """Out of blocks, the last request by rank gives way. False: that was `request` itself."""
        while not self._blocks.try_grow(request, request.num_tokens):
            last = self._running[-1]
            self._preempt(last)
            if last is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        self._running.remove(request)
        self._blocks.release(request)
        request.status = Status.WAITING
        insort(self._waiting, request, key=_rank)

    def _prefill(self, budget: int, decodes: Sequence[Chunked]) -> list[Chunked]:
        """Prompts: half of the budget by rank, so that nothing starves, the rest shortest first.

        So a short prompt does not wait behind a long one, and a long one has half of every step once its turn has come.
        """
        if budget <= 0 or (not self._waiting and len(decodes) == len(self._running)):
            return []
        decoding = {chunk.request for chunk in decodes}
        begun = [request for request in self._running if request not in decoding]
        sizes: dict[Request, int] = {}
        is_open = self._share(-(-budget // 2), (*begun, *self._waiting), sizes)
        # Where memory or places are short, nobody overtakes the one who waits for them.
        waiting = self._waiting[:WINDOW] if is_open else []
        begun = [request for request in self._running if request not in decoding]
        by_size = sorted((*begun, *waiting), key=lambda one: (one.priority, _left(one, sizes), one.id))
        self._share(budget - sum(sizes.values()), by_size, sizes)
        return [Chunked(request, size) for request, size in sizes.items()]

    def _share(self, budget: int, requests: Iterable[Request], sizes: dict[Request, int]) -> bool:
        """Deals out `budget` tokens in the order given, on top of `sizes`. False: one could not be admitted."""
        is_open = True
        for request in requests:
            if budget <= 0:
                break
            if request.status is Status.WAITING and not (is_open and self._admit(request)):
                is_open = False
                continue
            tokens = min(_left(request, sizes), budget)
            if tokens:
                sizes[request] = sizes.get(request, 0) + tokens
                budget -= tokens
        return is_open

    def _admit(self, request: Request) -> bool:
        # Every running request will soon ask for one more block: without that reserve, a request would be admitted only
        # to be preempted a few steps later.
        if len(self._running) >= min(self._max_num_requests, self._batch_tokens):
            return False
        if not self._blocks.try_start(request, len(self._running)):
            return False
        self._waiting.remove(request)
        insort(self._running, request, key=_rank)
        request.status = Status.RUNNING
        if request.num_tokens == request.num_prompt_tokens:
            request.num_cached = request.num_computed
        return True


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


def _left(request: Request, sizes: dict[Request, int]) -> int:
    """Tokens of `request` that this step does not compute yet."""
    return request.num_pending - sizes.get(request, 0)
