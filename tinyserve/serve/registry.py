"""The controller's table of workers: who is there, what they serve, how busy they are, whom not to use now.

Pure data: no HTTP, no asyncio, no clock of its own. It belongs to one event loop, which alone reads and writes it, so
it has no locks. Which of several workers is taken is decided in dispatch.py, when to look for silent ones in
heartbeat.py.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tinyserve.serve.dispatch import Candidate, DispatchMethod
from tinyserve.serve.messages import WorkerStatus

logger = logging.getLogger(__name__)

NO_SPEED = 1e-4  # below this a worker takes no requests
MAX_LOOKUPS = 10_000  # of one worker that are counted at a time


@dataclass(eq=False)
class Worker:
    """One line of the table. Load is what we know exactly plus what the worker last told about everybody else."""

    name: str  # its address
    status: WorkerStatus
    check_heart_beat: bool  # False: registered by hand, never expires
    multimodal: bool
    last_seen: float  # seconds on the registry's clock
    in_flight: int = 0  # streams that run through this controller now
    others: int = 0  # what the worker reported beyond our own streams: clients that talk to it directly
    lookups: deque[float] = field(
        default_factory=lambda: deque(maxlen=MAX_LOOKUPS)
    )  # for addresses handed out: when each stops counting
    suspended: bool = False  # could not be reached; not used until it shows a sign of life
    last_chosen: int = 0

    def queue_length(self, now: float) -> int:
        while self.lookups and self.lookups[0] <= now:
            self.lookups.popleft()
        return self.in_flight + self.others + len(self.lookups)

    def report(self, queue_length: int, now: float) -> None:
        """The worker said how many requests it has; that contains our streams and the addresses handed out before."""
        self.others = max(0, queue_length - self.in_flight)
        self.lookups.clear()
        self.last_seen = now
        self.suspended = False


class Registry:
    """All workers known to one controller."""

    def __init__(self, clock: Callable[[], float], lookup_seconds: float) -> None:
        """
        Args:
            clock: seconds, never going backwards.
            lookup_seconds: how long an address handed out counts as one request when the worker reports nothing.
        """
        self.clock = clock
        self._lookup_seconds = lookup_seconds
        self._workers: dict[str, Worker] = {}
        self._chosen = 0

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def get(self, name: str) -> Worker | None:
        return self._workers.get(name)

    def register(self, name: str, check_heart_beat: bool, status: WorkerStatus, multimodal: bool = False) -> None:
        """Adds a worker, or replaces what is known of it; streams that run through it stay counted."""
        now = self.clock()
        worker = self._workers.get(name)
        if worker is None:
            worker = self._workers[name] = Worker(name, status, check_heart_beat, multimodal, now)
            logger.info("new worker %s serves %s", name, ", ".join(status.model_names))
        worker.status, worker.check_heart_beat, worker.multimodal = status, check_heart_beat, multimodal
        worker.report(status.queue_length, now)

    def remove(self, name: str) -> bool:
        """False when there was no such worker."""
        return self._workers.pop(name, None) is not None

    def heart_beat(self, name: str, queue_length: int) -> bool:
        """False when the worker is unknown and has to register again."""
        worker = self._workers.get(name)
        if worker is None:
            return False
        worker.report(queue_length, self.clock())
        return True

    def suspend(self, worker: Worker, reason: str) -> None:
        """Takes the worker out of use until it beats, registers or answers a probe."""
        if not worker.suspended and self._workers.get(worker.name) is worker:
            worker.suspended = True
            logger.warning("worker %s is not used until it shows a sign of life: %s", worker.name, reason)

    def expire(self, silent_seconds: float) -> list[str]:
        """Removes the workers whose heart beats stopped longer ago than that, and returns their names."""
        oldest = self.clock() - silent_seconds
        names = [w.name for w in self if w.check_heart_beat and w.last_seen < oldest]
        for name in names:
            self.remove(name)
            logger.warning("worker %s removed: no heart beat for %g s", name, silent_seconds)
        return names

    def model_names(self, multimodal: bool | None = None) -> list[str]:
        """Models that can be asked for now, sorted; all, or only those of (not) multimodal workers."""
        workers = [w for w in self if not w.suspended and multimodal in (None, w.multimodal)]
        return sorted({name for worker in workers for name in worker.status.model_names})

    def choose(
        self,
        model: str,
        method: DispatchMethod,
        rng: random.Random,
        excluded: Collection[str] = (),
        suspended: bool = False,
    ) -> Worker | None:
        """The worker for the next request, None when nobody can take it.

        Args:
            excluded: names not to consider.
            suspended: choose among the suspended workers instead of the others.
        """
        workers = [
            w
            for w in self
            if model in w.status.model_names
            and w.suspended == suspended
            and w.status.speed >= NO_SPEED
            and w.name not in excluded
        ]
        if not workers:
            return None
        now = self.clock()
        worker = workers[method([Candidate(w.status.speed, w.queue_length(now), w.last_chosen) for w in workers], rng)]
        self._chosen += 1
        worker.last_chosen = self._chosen
        return worker

    def count_lookup(self, worker: Worker) -> None:
        """The worker's address was handed out: a request is on its way that does not pass through here.

        It counts until the worker's next report, which then contains it, and never longer than `lookup_seconds`.
        """
        worker.lookups.append(self.clock() + self._lookup_seconds)

    @contextmanager
    def stream_through(self, worker: Worker) -> Iterator[None]:
        """Counts one stream while it runs."""
        worker.in_flight += 1
        try:
            yield
        finally:
            worker.in_flight -= 1
