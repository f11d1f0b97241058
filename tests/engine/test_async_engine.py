"""The asyncio face: chunks arrive, leaving frees blocks, closing ends everything, slow readers cost nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
import pytest_asyncio

from tinyserve.config import SamplingParams
from tinyserve.engine.async_engine import AsyncEngine
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import Generator, RequestError
from tinyserve.engine.request import Chunk

LONG = SamplingParams(max_new_tokens=200, temperature=0.0, ignore_eos=True)
SHORT = SamplingParams(max_new_tokens=5, temperature=0.0, ignore_eos=True)


@pytest_asyncio.fixture(params=[False, True], ids=["in turn", "looking ahead"])
async def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(make_engine(num_blocks=256, overlap=request.param), "tiny-llama")
    yield engine
    await engine.close()
    assert not engine._thread.is_alive()


async def collect(engine: Generator, prompt: str, params: SamplingParams) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(prompt, params)]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        await asyncio.sleep(0.005)


def is_idle(engine: AsyncEngine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.free_blocks == stats.total_blocks


async def test_chunks_add_up_and_only_the_last_has_a_reason(engine: AsyncEngine) -> None:
    chunks = await collect(engine, "Once upon", SHORT)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    assert sum(len(chunk.token_ids) for chunk in chunks) == chunks[-1].num_completion_tokens == 5
    assert chunks[-1].num_prompt_tokens == engine.count_tokens("Once upon")
    assert is_idle(engine)


async def test_many_tasks_get_each_their_own_text(engine: AsyncEngine) -> None:
    prompts = [f"Prompt number {number}" for number in range(24)]
    alone = [await collect(engine, prompt, SHORT) for prompt in prompts]
    together = await asyncio.gather(*(collect(engine, prompt, SHORT) for prompt in prompts))

    def text(chunks: list[Chunk]) -> str:
        return "".join(chunk.text for chunk in chunks)

    assert [text(chunks) for chunks in together] == [text(chunks) for chunks in alone]
    assert engine.stats().generated_tokens == 2 * 24 * 5


async def test_closing_the_generator_frees_its_blocks(engine: AsyncEngine) -> None:
    async with aclosing(engine.generate("Once", LONG)) as stream:
        await anext(stream)
        assert not is_idle(engine)
    await until(lambda: is_idle(engine))
    assert engine.stats().generated_tokens < 200


async def test_cancelling_the_task_frees_its_blocks(engine: AsyncEngine) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async for _ in engine.generate("Once", LONG):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: is_idle(engine))


async def test_a_request_error_comes_before_the_first_chunk(engine: AsyncEngine) -> None:
    with pytest.raises(RequestError, match="leaves no room"):
        await collect(engine, "word " * 1000, SHORT)
    assert (await collect(engine, "Still", SHORT))[-1].finish_reason == "length"


async def test_a_reader_that_pauses_gets_one_merged_chunk(engine: AsyncEngine) -> None:
    async with aclosing(engine.generate("Once", LONG)) as stream:
        first = await anext(stream)
        await until(lambda: is_idle(engine))
        rest = [chunk async for chunk in stream]
    assert len(rest) == 1
    assert rest[0].finish_reason == "length"
    assert len(first.token_ids) + len(rest[0].token_ids) == 200


async def test_close_ends_running_requests_and_refuses_new_ones(engine: AsyncEngine) -> None:
    stream = engine.generate("Once", LONG)
    await anext(stream)
    await engine.close()
    last = [chunk async for chunk in stream][-1]
    assert last.finish_reason == "abort"
    with pytest.raises(RuntimeError, match="the engine is closed"):
        await collect(engine, "Once", SHORT)
    await engine.close()
    assert is_idle(engine)


async def test_event_loops_in_several_threads_share_one_engine(engine: AsyncEngine) -> None:
    results: list[list[Chunk]] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(collect(engine, "Once", SHORT)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(results) == 4
    assert len({"".join(chunk.text for chunk in chunks) for chunks in results}) == 1


async def test_a_loop_that_closes_without_cleaning_up_leaves_nothing_running(engine: AsyncEngine) -> None:
    def abandon() -> None:
        loop = asyncio.new_event_loop()
        stream = engine.generate("Once", LONG)
        loop.run_until_complete(anext(stream))
        loop.close()

    await asyncio.to_thread(abandon)
    await until(lambda: is_idle(engine))
    assert (await collect(engine, "Still", SHORT))[-1].finish_reason == "length"


async def test_a_dead_engine_thread_tells_its_readers(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise MemoryError("all gone")

    monkeypatch.setattr(engine._engine, "step", die)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    chunks = await collect(engine, "Once", SHORT)
    assert chunks[-1].finish_reason == "error"
    assert chunks[-1].error == "the engine has failed: MemoryError: all gone"
    with pytest.raises(RuntimeError, match="the engine is closed"):
        await collect(engine, "Once", SHORT)
