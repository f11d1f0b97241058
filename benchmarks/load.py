"""Sends requests to a server in a closed loop (so many clients) or an open one (so many per second) and times tokens.

TTFT: from sending a request to its first token. ITL: between two pieces of a stream. TPOT: from the first token to the
last, per token. It knows no server; endpoints.py does.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.endpoints import Endpoint, StreamError

PERCENTILES = (50, 90, 99)
# Words that are one token in most vocabularies, so that a prompt has about as many tokens as words.
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city community name president team minute idea
body information back parent face others level office door health person art war history party result change
morning reason
"""


@dataclass
class Served:
    """What one client saw. Times in seconds on one clock."""

    sent: float
    pieces: list[float] = field(default_factory=list)  # when each piece of text came
    num_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    timing: dict[str, float] | None = None  # the worker's own account of a request with images
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.pieces[0] - self.sent

    @property
    def total(self) -> float:
        return self.pieces[-1] - self.sent

    @property
    def tpot(self) -> float:
        return (self.pieces[-1] - self.pieces[0]) / max(1, self.num_tokens - 1)

    @property
    def itls(self) -> list[float]:
        return [late - early for early, late in zip(self.pieces, self.pieces[1:], strict=False)]


@dataclass(frozen=True)
class Job:
    prompt: str
    max_new_tokens: int
    images: tuple[str, ...] = ()  # base64


def random_prompt(num_words: int, random_: random.Random) -> str:
    words = _WORDS.split()
    return " ".join(random_.choice(words) for _ in range(num_words))


class Client:
    """Requests to one server, from one event loop."""

    def __init__(self, session: aiohttp.ClientSession, url: str, endpoint: Endpoint) -> None:
        self._session = session
        self._url = url.rstrip("/") + endpoint.path
        self._endpoint = endpoint

    async def run(self, job: Job, on_piece: Callable[[Served], None] = lambda served: None) -> Served:
        """One request to its end; what goes wrong is in its `error`."""
        served = Served(time.perf_counter())
        body = self._endpoint.body(job.prompt, job.max_new_tokens)
        if job.images:
            body["images"] = list(job.images)
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    raise StreamError(f"HTTP {response.status}: {(await response.text())[:200]}")
                await self._read(response, served, on_piece)
            if not served.pieces:
                raise StreamError("the stream ended without any text")
        except (aiohttp.ClientError, OSError, ValueError, KeyError, StreamError) as error:
            served.error = f"{type(error).__name__}: {error}"
        return served

    async def _read(self, response: aiohttp.ClientResponse, served: Served, on_piece: Callable[[Served], None]) -> None:
        rest = b""
        async for data in response.content.iter_any():
            now = time.perf_counter()
            *parts, rest = (rest + data).replace(b"\r\n", b"\n").split(self._endpoint.separator)
            for event in filter(None, map(self._endpoint.parse, parts)):
                if event.has_text:
                    served.pieces.append(now)
                    on_piece(served)
                served.num_tokens = event.completion_tokens or len(served.pieces)
                served.prompt_tokens = event.prompt_tokens or served.prompt_tokens
                served.timing = event.timing or served.timing
                served.cached_tokens = max(served.cached_tokens, event.cached_tokens)


@asynccontextmanager
async def client(url: str, endpoint: Endpoint) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield Client(session, url, endpoint)


async def closed_loop(client: Client, jobs: Sequence[Job], concurrency: int) -> list[Served]:
    """`concurrency` clients, each of which sends its next request when its last one has ended."""
    left = iter(jobs)

    async def one_after_another() -> list[Served]:
        return [await client.run(job) for job in left]

    return [
        served for one in await asyncio.gather(*(one_after_another() for _ in range(concurrency))) for served in one
    ]


async def open_loop(client: Client, jobs: Sequence[Job], rate: float, random_: random.Random) -> list[Served]:
    """Requests at random moments, `rate` per second on average (a Poisson process), whatever the server does."""
    tasks = []
    for job in jobs:
        tasks.append(asyncio.create_task(client.run(job)))
        await asyncio.sleep(random_.expovariate(rate))
    return await asyncio.gather(*tasks)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def summary(all_served: Sequence[Served], max_ttft_s: float, max_tpot_s: float) -> dict[str, Any]:
    """Rates and percentiles of one run; goodput counts the requests that kept both limits."""
    good = [served for served in all_served if served.error is None]
    errors = [served.error for served in all_served if served.error is not None]
    if not good:
        return {"requests": 0, "errors": len(errors), "first_error": errors[0] if errors else None}
    seconds = max(served.pieces[-1] for served in good) - min(served.sent for served in good)
    kept = [served for served in good if served.ttft <= max_ttft_s and served.tpot <= max_tpot_s]
    series = {
        "ttft_s": [served.ttft for served in good],
        "tpot_s": [served.tpot for served in good if served.num_tokens > 1],
        "itl_s": [itl for served in good for itl in served.itls],
        "e2e_s": [served.total for served in good],
    }
    return {
        "requests": len(good),
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "seconds": seconds,
        "prompt_tokens_mean": statistics.mean(served.prompt_tokens or 0 for served in good),
        "output_tokens": sum(served.num_tokens for served in good),
        "output_tokens_per_s": sum(served.num_tokens for served in good) / seconds,
        "goodput_requests_per_s": len(kept) / seconds,
        **{
            name: {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
            for name, values in series.items()
            if values
        },
        "raw": {name: [round(value, 5) for value in values] for name, values in series.items() if name != "itl_s"},
    }
