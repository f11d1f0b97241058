"""Several samples as one stream: seeds, order of start, and every way to end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tinyserve.config import SamplingParams
from tinyserve.engine.request import Chunk
from tinyserve.serve.samples import samples


class Source:
    """Hands out samples of `num_chunks` chunks and remembers who was asked for what."""

    def __init__(self, num_chunks: int = 3, fails_at: int | None = None) -> None:
        self.seeds: list[int | None] = []
        self.running = 0
        self.started_with: list[int] = []  # chunks handed out before each start
        self._num_chunks = num_chunks
        self._fails_at = fails_at
        self._handed_out = 0

    async def generate(self, params: SamplingParams) -> AsyncGenerator[Chunk, None]:
        sample = len(self.seeds)
        self.seeds.append(params.seed)
        self.started_with.append(self._handed_out)
        self.running += 1
        try:
            for number in range(1, self._num_chunks + 1):
                await asyncio.sleep(0.001)
                if sample == self._fails_at and number == 2:
                    raise RuntimeError("out of luck")
                self._handed_out += 1
                reason = "stop" if number == self._num_chunks else None
                yield Chunk(f"{sample}.{number} ", (number,), 1, number, reason)  # type: ignore[arg-type]
        finally:
            self.running -= 1


@pytest.mark.parametrize("number", [1, 2, 5])
async def test_each_sample_is_complete_and_in_order(number: int) -> None:
    source = Source()
    texts = [""] * number
    async for index, chunk in samples(source.generate, SamplingParams(), number):
        texts[index] += chunk.text
    assert texts == [f"{index}.1 {index}.2 {index}.3 " for index in range(number)]
    assert source.running == 0


async def test_seeds_differ_and_are_known_beforehand() -> None:
    source = Source()
    async for _ in samples(source.generate, SamplingParams(seed=2**63 - 2), 3):
        pass
    assert source.seeds == [2**63 - 2, 2**63 - 1, 0]
    source = Source()
    async for _ in samples(source.generate, SamplingParams(), 2):
        pass
    assert source.seeds == [None, None]


async def test_the_others_start_when_the_prompt_is_computed() -> None:
    source = Source()
    async for _ in samples(source.generate, SamplingParams(), 4):
        pass
    assert source.started_with[0] == 0
    assert all(handed_out >= 1 for handed_out in source.started_with[1:])


@pytest.mark.parametrize("fails_at", [0, 2])
async def test_a_sample_that_fails_ends_all(fails_at: int) -> None:
    source = Source(fails_at=fails_at)
    with pytest.raises(RuntimeError, match="out of luck"):
        async for _ in samples(source.generate, SamplingParams(), 3):
            pass
    assert source.running == 0


@pytest.mark.parametrize("num_read", [1, 4])
async def test_whoever_leaves_ends_all(num_read: int) -> None:
    source = Source(num_chunks=50)
    async with aclosing(samples(source.generate, SamplingParams(), 3)) as stream:
        for _ in range(num_read):
            await anext(stream)
        assert source.running >= 1
    assert source.running == 0
