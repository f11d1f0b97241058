"""A LLaVA folder in the engine: greedy texts about images are transformers' own, whatever runs beside them."""

from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
from llava_logits import picture
from pictures import file_of
from run_engine import Result

from tinyserve.config import EngineConfig, SamplingParams
from tinyserve.engine.engine import Engine
from tinyserve.engine.image_file import ImageFile
from tinyserve.engine.image_prompt import PLACEHOLDER, tokenize

PROMPTS = [
    ("USER: <image>\nWhat is this? ASSISTANT:", [0]),
    ("No image here.", []),
    ("<image><image> and <image> once more", [1, 2, 1]),
    ("A thin one: <image>", [4]),
]
NEW = 10


def expected(reference: Any, engine: Engine) -> list[list[int]]:
    """transformers generates one prompt after the other, from the same token ids."""
    reference.generation_config.eos_token_id = None
    results = []
    for prompt, images in PROMPTS:
        files = [ImageFile.read(file_of(picture(image))) for image in images]
        ids = torch.tensor([tokenize(prompt, files, engine.tokenizer, engine._model.image_spec).token_ids])
        ids[ids == PLACEHOLDER] = tiny_llava.IMAGE_TOKEN
        pictures = [picture(image) for image in images]
        inputs = dict(tiny_llava.processor(reference)(pictures, return_tensors="pt")) if images else {}
        output = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **inputs
        )
        results.append(output[0, ids.shape[1] :].tolist())
    return results


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_texts_equal_transformers(tmp_path: Path, kind: str, layout: str) -> None:
    reference = tiny_llava.make(kind, language="mistral")
    folder = (tiny_llava.save if layout == "hf" else tiny_llava.save_original)(reference, tmp_path)
    settings: dict[str, Any] = {"block_size": 8, "kv_cache_bytes": 1 << 24, "max_batch_tokens": 24}
    engine = Engine.create(EngineConfig(folder, precision="W16A16", device="cpu", **settings))
    assert engine.image_encoder is not None
    results = {}
    for prompt, images in PROMPTS:
        files = [ImageFile.read(file_of(picture(image))) for image in images]
        prepared = engine.prepare(
            prompt, SamplingParams(max_new_tokens=NEW, temperature=0.0, ignore_eos=True), images=files
        )
        if files:
            lease = engine.image_encoder.submit(files)
            prepared.insert(lease.embeddings.result(20), lease.timing)
            lease.release()
        results[engine.add(prepared)] = Result()
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].take(output.chunk)
    assert [result.token_ids for result in results.values()] == expected(reference, engine)
    engine.image_encoder.close()
