"""LLaVA against transformers: logits of prompts with 0, 1 and 3 images in both layouts, alone and beside text."""

from pathlib import Path

import pytest
import tiny_llava
from llama_model import load_llama
from llava_logits import assert_equal, expected, logits

BATCH = [[], [0], [1, 2, 0], [3], [], [4]]  # images in each prompt, see llava_logits.SIZES


@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_logits_equal_transformers(kind: str, tower: str, language: str, tmp_path: Path) -> None:
    reference = tiny_llava.make(kind, tower, language)
    folders = [tiny_llava.save(reference, tmp_path / "hf"), tiny_llava.save_original(reference, tmp_path / "original")]
    models = [load_llama(folder, precision="W16A16") for folder in folders]
    wanted = expected(reference, models[0], BATCH)
    for model in models:
        assert_equal(logits(model, BATCH), wanted)
        for images in ([], [0], [1, 2, 0]):
            assert_equal(logits(model, [images]), expected(reference, model, [images]))
