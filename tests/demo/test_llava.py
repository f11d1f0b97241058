"""The demo's model that sees, as it is shipped: it loads as a LoRA over SmolLM2 and names what its pictures show."""

import asyncio
from pathlib import Path

import pytest

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.demo import llava
from tinyserve.demo.question import CHATML, SYSTEM
from tinyserve.engine.async_engine import AsyncEngine
from tinyserve.engine.image_file import ImageFile

MAX_BYTES = 15_000_000


def test_the_asset_is_small_and_complete() -> None:
    weights = sorted(path.relative_to(llava.FOLDER).as_posix() for path in llava.FOLDER.rglob("*.safetensors"))
    assert weights == [
        "adapter_model.safetensors",
        "non_lora_trainables.safetensors",
        "vision_tower/model.safetensors",
    ]
    assert sum((llava.FOLDER / name).stat().st_size for name in weights) <= MAX_BYTES
    assert len(llava.examples()) == 3
    assert all((llava.FOLDER / name).is_file() for name in ("README.md", "training_log.jsonl"))


def test_its_version_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    before = llava.version(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert llava.version(tmp_path) == before
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert llava.version(tmp_path) != before


@pytest.fixture(scope="module")
def answers(smollm2: Path) -> dict[str, str]:
    """What it says about each example picture."""
    prompt = CHATML.format(SYSTEM, f"<image>\n{llava.QUESTION}")
    config = EngineConfig(
        model_path=llava.FOLDER, model_base=smollm2, precision="W16A16", max_context=256, kv_cache_bytes=1 << 26
    )

    async def ask(engine: AsyncEngine, picture: Path) -> str:
        params = SamplingParams(max_new_tokens=24, temperature=0.0)
        images = [ImageFile.read(picture.read_bytes())]
        return "".join([chunk.text async for chunk in engine.generate(prompt, params, images=images)])

    async def ask_all() -> dict[str, str]:
        engine = AsyncEngine.create(config)
        try:
            pictures = llava.examples()
            texts = await asyncio.gather(*(ask(engine, picture) for picture in pictures.values()))
            return dict(zip(pictures, texts, strict=True))
        finally:
            await engine.close()

    return asyncio.run(ask_all())


def test_it_names_pictures_that_it_was_not_trained_on(answers: dict[str, str]) -> None:
    assert answers == {name: f"This picture shows: {name}." for name in llava.examples()}
