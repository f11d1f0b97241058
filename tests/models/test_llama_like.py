"""Llama, and architectures that differ in their configuration only: logits, context, rows inserted into a batch."""

import json
import logging
from pathlib import Path
from typing import Any

import flat_batch
import pytest
import tiny_architectures
import tiny_llama
import torch

from tinyserve.models.evaluation import logits
from tinyserve.models.llama import Inserted
from tinyserve.models.loader import load_model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    reference = tiny_architectures.save(name, tmp_path)
    model = load_model(tmp_path, precision="W16A16", dtype="float32")
    length = min(model.num_positions, 70)
    texts = torch.randint(0, 320, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(texts).logits
    torch.testing.assert_close(logits(model, texts), expected, rtol=1e-4, atol=1e-4)


def test_a_sliding_window_limits_the_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_architectures.save("mistral", tmp_path)
    with caplog.at_level(logging.INFO):
        assert load_model(tmp_path, precision="W16A16").num_positions == 16
    assert "the context is limited to the sliding window of 16 tokens, of 256 positions" in caplog.text
    with pytest.raises(ValueError, match="--max-context must be at most the model's 16 tokens, got 17"):
        load_model(tmp_path, precision="W16A16", max_context=17)


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {"use_sliding_window": False}, {"sliding_window": 256}])
def test_a_window_that_is_not_used_limits_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_architectures.save("mistral", tmp_path)
    edit_config(tmp_path, **changes)
    assert load_model(tmp_path, precision="W16A16").num_positions == 256


def test_inserted_rows_take_the_place_of_their_tokens(tmp_path: Path) -> None:
    model = load_model(tiny_llama.save(tmp_path), precision="W16A16", dtype="float32")
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 320, (length,), generator=generator) for length in (9, 40, 1)]
    rows = torch.tensor([0, 8, 9, 20, 48])
    expected = flat_batch.logits(model, texts)
    others = torch.cat(texts)
    embeddings = model.embedding(others[rows])
    others[rows] = 7
    got = flat_batch.logits(model, list(others.split([len(text) for text in texts])), Inserted(rows, embeddings))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_of_text_takes_no_images(tmp_path: Path) -> None:
    model = load_model(tiny_llama.save(tmp_path), precision="W16A16")
    assert model.image_spec is None
    with pytest.raises(ValueError, match="the model takes text only, no images"):
        model.encode_images([(torch.zeros(1, 3, 28, 28), (28, 28))])
