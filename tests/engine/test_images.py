"""Images in the engine: a prompt with an image gives what it gives with the tokens that the image stands for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import tiny_llava
import torch
from pictures import file_of, picture
from PIL import Image
from run_engine import Result, run
from seeing import SPEC, SeeingModel

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.async_engine import AsyncEngine
from tinyserve.engine.engine import Engine
from tinyserve.engine.generator import RequestError
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.image_prompt import PLACEHOLDER
from tinyserve.engine.request import Chunk
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.image_spec import ImageSpec
from tinyserve.models.llama import LlamaModel

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
IMAGES = [ImageFile.read(file_of(picture("RGB", 20 + 10 * seed, 30, seed))) for seed in range(4)]
PROMPTS = [
    ("What is this? <image> Tell me.", IMAGES[:1]),
    ("<image><image>\nAnd now?", IMAGES[1:3]),
    ("No image here, but a text that goes on for a while so that it has some length.", []),
    ("A: <image> B: <image> C: <image>", [IMAGES[3], IMAGES[0], IMAGES[3]]),
]


@pytest.fixture(scope="module")
def model(tiny_model: LlamaModel) -> SeeingModel:
    return SeeingModel(tiny_model)


def tokens_of(prompt: str, images: Sequence[ImageFile], model: SeeingModel, tokenizer: Tokenizer) -> list[int]:
    """The prompt with the tokens in place of the images."""
    first, *others = prompt.split("<image>")
    ids = tokenizer.encode(first)
    for image, text in zip(images, others, strict=True):
        ids += model.tokens(image) + tokenizer.encode(text, adds_bos=False)
    return ids


def run_images(
    engine: Engine, prompts: Sequence[tuple[str, Sequence[ImageFile]]], params: SamplingParams
) -> list[Result]:
    """As `run`, with images; all of them are encoded first."""
    assert engine.image_encoder is not None
    results = {}
    for prompt, images in prompts:
        prepared = engine.prepare(prompt, params, images=images)
        if images:
            lease = engine.image_encoder.submit(images)
            prepared.insert(lease.embeddings.result(20), lease.timing)
            lease.release()
        results[engine.add(prepared)] = Result()
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks, "a block has leaked"
    return list(results.values())


@pytest.fixture(scope="module")
def expected(
    model: SeeingModel, tokenizer: Tokenizer, make_engine: Callable[..., Engine]
) -> Callable[[SamplingParams], list[str]]:
    """Texts that the same prompts in plain tokens give."""

    def texts(params: SamplingParams) -> list[str]:
        prompts = [tokens_of(prompt, images, model, tokenizer) for prompt, images in PROMPTS]
        return [result.text for result in run(make_engine(), prompts, params)]

    return texts


@pytest.mark.parametrize("max_batch_tokens", [16, 23, 512])
def test_chunks_may_begin_and_end_anywhere(
    make_engine: Callable[..., Engine],
    model: SeeingModel,
    expected: Callable[[SamplingParams], list[str]],
    max_batch_tokens: int,
) -> None:
    engine = make_engine(model=model, max_batch_tokens=max_batch_tokens)
    results = run_images(engine, PROMPTS, GREEDY)
    assert [result.text for result in results] == expected(GREEDY)
    assert len({result.text for result in results}) == len(PROMPTS)


def test_after_a_preemption(
    make_engine: Callable[..., Engine], model: SeeingModel, expected: Callable[[SamplingParams], list[str]]
) -> None:
    params = replace(GREEDY, max_new_tokens=40)
    engine = make_engine(num_blocks=24, model=model, max_batch_tokens=32, prefix_cache=False)
    results = run_images(engine, PROMPTS, params)
    assert engine.stats().preemptions > 0
    assert [result.text for result in results] == expected(params)


@pytest.mark.parametrize("settings", [{"num_speculative_tokens": 4}, {"block_size": 16}])
def test_with_guesses_and_other_blocks(
    make_engine: Callable[..., Engine],
    model: SeeingModel,
    expected: Callable[[SamplingParams], list[str]],
    settings: dict[str, int],
) -> None:
    params = replace(GREEDY, max_new_tokens=60)
    results = run_images(make_engine(num_blocks=128, model=model, **settings), PROMPTS, params)
    assert [result.text for result in results] == expected(params)


def test_no_guess_is_an_image(make_engine: Callable[..., Engine], model: SeeingModel) -> None:
    """The last words of the prompt stand before its first image too."""
    prompt, images = "Look at this picture: <image> Look at this picture:", IMAGES[:1]
    plain = run_images(make_engine(model=model), [(prompt, images)], GREEDY)
    guessing = make_engine(model=model, num_speculative_tokens=8)
    prepared = guessing.prepare(prompt, GREEDY, images=images)
    assert list(prepared.ngrams.guess(prepared.request.token_ids, 8)) == guessing.tokenizer.encode(" ")
    assert run_images(guessing, [(prompt, images)], GREEDY)[0].text == plain[0].text


def test_penalties_see_text_alone(make_engine: Callable[..., Engine], model: SeeingModel) -> None:
    params = replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.5)
    engine = make_engine(model=model)
    prepared = engine.prepare(*PROMPTS[0][:1], params, images=PROMPTS[0][1])
    assert prepared.sampling.seen is not None
    assert PLACEHOLDER in prepared.request.token_ids
    assert PLACEHOLDER not in prepared.sampling.seen.ids
    assert run_images(engine, PROMPTS[:1], params)[0].finish_reason == "length"


def test_the_same_image_is_found_in_the_cache_and_another_is_not(
    make_engine: Callable[..., Engine], model: SeeingModel
) -> None:
    size = (20, 30)
    one, other = (ImageFile.read(file_of(picture("RGB", *size, seed))) for seed in (11, 12))
    prompt = "What is this? <image> Tell me more about it."
    engine = make_engine(model=model)
    first, again, different = (run_images(engine, [(prompt, [image])], GREEDY)[0] for image in (one, one, other))
    cached = [result.last.num_cached_tokens if result.last else None for result in (first, again, different)]
    number = len(engine.prepare(prompt, GREEDY, images=[one]).request.token_ids)
    before = len(engine.tokenizer.encode("What is this? "))
    assert cached == [0, (number - 1) // 8 * 8, before // 8 * 8]
    assert first.text == again.text
    assert different.text == run_images(make_engine(model=model), [(prompt, [other])], GREEDY)[0].text != first.text


def test_a_long_text_after_the_image_shares_no_block_with_that_after_another(
    make_engine: Callable[..., Engine], model: SeeingModel
) -> None:
    """The image is in the first blocks; all later ones hold the same text."""
    prompt = "<image>" + " and so on" * 30
    engine = make_engine(model=model)
    same_size = [ImageFile.read(file_of(picture("RGB", 20, 30, seed))) for seed in (21, 22)]
    results = [run_images(engine, [(prompt, [image])], GREEDY)[0] for image in same_size]
    assert [result.last.num_cached_tokens for result in results if result.last] == [0, 0]


def test_usage_and_the_context_count_every_token_of_an_image(
    make_engine: Callable[..., Engine], model: SeeingModel
) -> None:
    prompt, images = PROMPTS[3]
    engine = make_engine(model=model, max_context=100)
    result = run_images(engine, [(prompt, images)], GREEDY)[0]
    text = sum(len(engine.tokenizer.encode(piece)) for piece in prompt.split("<image>"))
    number = text + sum(SPEC.num_tokens(image.width, image.height) for image in images)
    assert result.last is not None
    assert result.last.num_prompt_tokens == number == engine.preparation.count_tokens(prompt, images)
    small = make_engine(model=model, max_context=number)
    with pytest.raises(RequestError, match=rf"prompt of {number} tokens \(81 of them for 3 images\)") as error:
        small.prepare(prompt, GREEDY, images=images)
    assert error.value.code == 40303
    assert small.preparation.count_tokens("<image>") == SPEC.num_tokens(8, 8)


def transformers_text(model: Any, tokenizer: Tokenizer, prompt: str, pictures: Sequence[Image.Image]) -> str:
    """What LlavaNextForConditionalGeneration says, on tokens made as LLaVA makes them."""
    inputs = tiny_llava.processor(model)(list(pictures), return_tensors="pt") if pictures else {}
    spec = ImageSpec.from_hf(model.config.to_dict())
    first, *others = (tokenizer.encode(piece) for piece in prompt.split("<image>"))
    for image, piece in zip(pictures, others, strict=True):
        first += [tiny_llava.IMAGE_TOKEN] * spec.num_tokens(*image.size) + piece
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([first]),
            attention_mask=torch.ones(1, len(first), dtype=torch.long),
            **inputs,
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            min_new_tokens=GREEDY.max_new_tokens,
            eos_token_id=None,
        )
    return tokenizer.decode(output[0, len(first) :].tolist())


@pytest.mark.parametrize("max_batch_tokens", [16, 512])
def test_a_real_llava_next_answers_as_transformers_does(tmp_path: Path, max_batch_tokens: int) -> None:
    """Any resolution, with the padding cut off and a vector behind each row: odd sizes, many chunks, one batch."""
    model = tiny_llava.make("llava_next")
    folder = tiny_llava.save(model, tmp_path / "llava-next")
    engine = Engine.create(
        EngineConfig(
            folder, precision="W16A16", dtype="float32", max_batch_tokens=max_batch_tokens, kv_cache_bytes=4_000_000
        )
    )
    pictures = [picture("RGB", *size) for size in [(90, 31), (28, 28), (33, 120)]]
    files = [ImageFile.read(file_of(image)) for image in pictures]
    asked = [("one <image> here", [0]), ("<image><image> and <image>", [1, 2, 0]), ("none at all", [])]
    results = run_images(engine, [(prompt, [files[index] for index in chosen]) for prompt, chosen in asked], GREEDY)
    for (prompt, chosen), result in zip(asked, results, strict=True):
        shown = [pictures[index] for index in chosen]
        assert result.text == transformers_text(model, engine.tokenizer, prompt, shown)


# -- through asyncio ---------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def engine(make_engine: Callable[..., Engine], tiny_model: LlamaModel) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(make_engine(num_blocks=256, model=SeeingModel(tiny_model)), "seeing")
    yield engine
    seeing_model(engine).may_run.set()
    await engine.close()


def seeing_model(engine: AsyncEngine) -> SeeingModel:
    model = engine._engine._model
    assert isinstance(model, SeeingModel)
    return model


async def collect(engine: AsyncEngine, prompt: str, images: Sequence[ImageFile] = ()) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(prompt, GREEDY, images=images)]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited 20 s in vain")


async def test_streams_and_timing(engine: AsyncEngine, expected: Callable[[SamplingParams], list[str]]) -> None:
    assert engine.takes_images
    answers = await asyncio.gather(*(collect(engine, prompt, images) for prompt, images in PROMPTS))
    assert ["".join(chunk.text for chunk in chunks) for chunks in answers] == expected(GREEDY)
    *others, last = answers[0]
    assert last.timing is not None
    assert all(chunk.timing is None for chunk in others)
    timing = last.timing
    assert min(timing.decode_s, timing.preprocess_s, timing.vision_s, timing.prefill_s) > 0
    assert answers[2][-1].timing is None  # text alone
    again = (await collect(engine, *PROMPTS[0]))[-1]
    assert again.timing is not None
    assert (again.timing.decode_s, again.timing.vision_s) == (0, 0)
    assert engine.stats().encoded_images == 4


async def test_text_goes_on_while_images_are_encoded(engine: AsyncEngine) -> None:
    model = seeing_model(engine)
    model.may_run.clear()
    waiting = asyncio.create_task(collect(engine, *PROMPTS[0]))
    await until(lambda: engine.stats().num_encoding == 1)
    assert (await collect(engine, "only text"))[-1].finish_reason == "length"
    assert not waiting.done()
    model.may_run.set()
    assert (await waiting)[-1].finish_reason == "length"
    assert engine.stats().num_encoding == 0


async def test_leaving_while_images_are_encoded_and_while_tokens_come(engine: AsyncEngine) -> None:
    model = seeing_model(engine)
    model.may_run.clear()
    leaving = asyncio.create_task(collect(engine, *PROMPTS[0]))
    await until(lambda: bool(model.runs))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    model.may_run.set()
    async with aclosing(engine.generate("<image>", replace(GREEDY, max_new_tokens=100), images=IMAGES[:1])) as chunks:
        await anext(chunks)
    await until(lambda: engine.stats().num_running == 0)
    encoder = engine._engine.image_encoder
    assert encoder is not None
    assert encoder._cache.used_bytes == 0


async def test_a_failure_of_the_tower_ends_its_request_alone(engine: AsyncEngine) -> None:
    model = seeing_model(engine)
    model.failure = MemoryError()
    text = asyncio.create_task(collect(engine, "only text"))
    with pytest.raises(MemoryError, match=r"images\[0\] does not fit"):
        await collect(engine, *PROMPTS[0])
    model.failure = None
    assert (await text)[-1].finish_reason == "length"
    assert (await collect(engine, *PROMPTS[0]))[-1].finish_reason == "length"


async def test_closing_while_images_are_encoded(engine: AsyncEngine) -> None:
    model = seeing_model(engine)
    model.may_run.clear()
    held = asyncio.create_task(collect(engine, *PROMPTS[0]))
    await until(lambda: bool(model.runs))
    waiting = asyncio.create_task(collect(engine, *PROMPTS[1]))
    await until(lambda: engine.stats().num_encoding == 2)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    model.may_run.set()
    await closing
    for task in (held, waiting):
        with pytest.raises(RuntimeError, match="closed"):
            await task
