"""Several samples of one prompt as one stream of chunks: requests of their own to the engine, which run side by side.

It decides when each of them starts and which seed it gets. It knows no records.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from tinyserve.config import SamplingParams
from tinyserve.engine.request import Chunk

Generate = Callable[[SamplingParams], AsyncGenerator[Chunk, None]]


async def samples(generate: Generate, params: SamplingParams, number: int) -> AsyncGenerator[tuple[int, Chunk], None]:
    """The chunks of `number` samples as they come, each with the index of its sample.

    Sample i draws with the seed + i where one is given. The others start when the first has its first token: by then
    the prompt is in the cache, and they share it. Closing the generator ends them all.

    Raises:
        RequestError, RuntimeError: as `generate`; all of them end.
    """
    if number == 1:
        async with aclosing(generate(params)) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        return
    streams = [generate(_of_sample(params, index)) for index in range(number)]
    waiting: dict[asyncio.Future[Chunk], int] = {asyncio.ensure_future(anext(streams[0])): 0}
    others = range(1, number)
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                chunk = future.result()
                if chunk.finish_reason is None:
                    waiting[asyncio.ensure_future(anext(streams[index]))] = index
                for other in others:
                    waiting[asyncio.ensure_future(anext(streams[other]))] = other
                others = range(0)
                yield index, chunk
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _of_sample(params: SamplingParams, index: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=(params.seed + index) % 2**63)
