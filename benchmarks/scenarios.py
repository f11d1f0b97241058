"""The situations that bench_server.py puts a server into. They return what was seen; what is good is judged there."""

import asyncio
import random
import statistics
from typing import Any

from benchmarks.load import Client, Job, Served, closed_loop, open_loop, percentile, random_prompt

PREFIX_WORDS = 1000
LONG_WORDS = 2000
STALLED_STREAMS = 4


class Failed(RuntimeError):
    """A request of a scenario failed; the text is its error."""


def checked(served: Served) -> Served:
    if served.error is not None:
        raise Failed(served.error)
    return served


async def closed(client: Client, random_: random.Random, concurrency: int, words: int, new: int) -> list[Served]:
    """So many clients with three requests each, at least six in all."""
    jobs = [Job(random_prompt(words, random_), new) for _ in range(max(6, 3 * concurrency))]
    return await closed_loop(client, jobs, concurrency)


async def poisson(
    client: Client, random_: random.Random, rate: float, seconds: float, words: int, new: int
) -> list[Served]:
    """Requests at random moments, with prompts of half to four times `words`."""
    lengths = [random_.randrange(words // 2, 4 * words) for _ in range(max(4, int(rate * seconds)))]
    return await open_loop(client, [Job(random_prompt(length, random_), new) for length in lengths], rate, random_)


async def prefix_hits(client: Client, random_: random.Random, repeats: int = 3) -> dict[str, Any]:
    """A long prompt, then another that begins with it, as a second turn does: TTFT of both."""
    cold, warm = [], []
    for _ in range(repeats):
        prompt = random_prompt(PREFIX_WORDS, random_)
        cold.append(checked(await client.run(Job(prompt, 4))))
        warm.append(checked(await client.run(Job(prompt + " " + random_prompt(8, random_), 4))))
    cold_s, warm_s = (statistics.median(served.ttft for served in each) for each in (cold, warm))
    return {
        "prompt_tokens": cold[0].prompt_tokens,
        "cached_tokens": [served.cached_tokens for served in warm],
        "cold_ttft_s": [served.ttft for served in cold],
        "warm_ttft_s": [served.ttft for served in warm],
        "gain": cold_s / warm_s,
    }


async def stall(client: Client, random_: random.Random, repeats: int = 2) -> dict[str, Any]:
    """Gaps of running streams before a long prompt comes, and while it is prefilled."""
    before: list[float] = []
    beside: list[float] = []
    long_ttft: list[float] = []
    for _ in range(repeats):
        first, last = await _one_stall(client, random_, before, beside)
        long_ttft.append(last - first)
    median = statistics.median(before)
    return {
        "streams": STALLED_STREAMS,
        "itl_median_s": median,
        "itl_median_beside_s": statistics.median(beside),
        "itl_p99_beside_s": percentile(beside, 99),
        "long_ttft_s": long_ttft,
        "stall": percentile(beside, 99) / median,
        "raw_before_s": [round(gap, 5) for gap in before],
        "raw_beside_s": [round(gap, 5) for gap in beside],
    }


async def _one_stall(
    client: Client, random_: random.Random, before: list[float], beside: list[float]
) -> tuple[float, float]:
    """Adds the gaps; returns when the long prompt was sent and when its first token came."""
    tasks, running = [], []
    for _ in range(STALLED_STREAMS):
        begun = asyncio.Event()

        def on_piece(served: Served, begun: asyncio.Event = begun) -> None:
            if served not in running:
                running.append(served)
            begun.set()

        job = Job(random_prompt(16, random_), 4000)
        tasks.append(asyncio.create_task(client.run(job, on_piece)))
        await asyncio.wait({asyncio.create_task(begun.wait()), tasks[-1]}, return_when=asyncio.FIRST_COMPLETED)
    try:
        await asyncio.sleep(3.0)
        long = checked(await client.run(Job(random_prompt(LONG_WORDS, random_), 1)))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if len(running) < STALLED_STREAMS:
        raise Failed("a stream ended before the long prompt came")
    undisturbed = max(served.pieces[0] for served in running)
    for served in running:
        for early, late in zip(served.pieces, served.pieces[1:], strict=False):
            if undisturbed < early and late < long.sent:
                before.append(late - early)
            elif early < long.pieces[0] and late > long.sent:
                beside.append(late - early)
    return long.sent, long.pieces[0]
