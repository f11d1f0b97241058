"""How many requests a worker serves at once, and how many wait: decides who may start, knows nothing of what they do.

Used from one event loop; `queue_length` alone may be read from other threads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tinyserve.engine.generator import RequestError
from tinyserve.serve.wire import ErrorCode


class Admission:
    """A counted permit. It is given back however its holder ends, and one who leaves while waiting leaves no trace."""

    def __init__(self, limit: int, max_open: int, on_change: Callable[[], None]) -> None:
        """
        Args:
            limit: requests served at once.
            max_open: requests in service and waiting together; one more is refused.
            on_change: called after each change of the queue length; must not block.
        """
        if limit < 1:
            raise ValueError(f"--limit-model-concurrency must be at least 1, got {limit}")
        self.limit = limit
        self.max_open = max_open
        self._permits = asyncio.Semaphore(limit)
        self._held = 0
        self._waiting = 0
        self._on_change = on_change

    @property
    def queue_length(self) -> int:
        """Requests in service and waiting (LLaVA's limit - free + waiters)."""
        return self._held + self._waiting

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        """Waits for a permit and holds it.

        Raises:
            RequestError: 42903 when too many are open already.
        """
        if self.queue_length >= self.max_open:
            message = f"overloaded: {self.queue_length} requests are open, at most {self.max_open} may be"
            raise RequestError(ErrorCode.OVERLOADED, message)
        self._waiting += 1
        self._on_change()
        try:
            await self._permits.acquire()
        finally:
            self._waiting -= 1
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._permits.release()
            self._on_change()
