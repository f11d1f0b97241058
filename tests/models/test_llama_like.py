"""Llama, and architectures that differ in their configuration only: logits, context, rows inserted into a batch."""

import json
from pathlib import Path
from typing import Any

import flat_batch
import pytest
import tiny_architectures
import tiny_llama
import torch
from llama_model import load_llama

from tinyserve.models.llama import Inserted


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("chunk", [1, 7, None], ids=["decode", "chunks", "whole"])
@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen2, a windowed layer"])
def test_logits_equal_transformers(name: str, chunk: int | None, tmp_path: Path) -> None:
    """Texts are longer than the windows of 16 tokens."""
    reference = tiny_architectures.save(name, tmp_path)
    model = load_llama(tmp_path, precision="W16A16", dtype="float32")
    assert model.num_positions == 256
    texts = torch.randint(0, 320, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(texts).logits
    got = torch.stack(flat_batch.logits(model, list(texts), chunk=chunk))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def windows(folder: Path) -> list[int]:
    return [layer.attention.window for layer in load_llama(folder, precision="W16A16").layers]


@pytest.mark.parametrize("changes", [{"sliding_window": None}, {"use_sliding_window": False}, {"sliding_window": 256}])
def test_a_window_that_is_not_used_hides_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_architectures.save("mistral", tmp_path)
    assert windows(tmp_path) == [16, 16]
    edit_config(tmp_path, **changes)
    assert windows(tmp_path) == [0, 0]


def test_layers_may_have_a_window_each(tmp_path: Path) -> None:
    tiny_architectures.save("mistral", tmp_path)
    edit_config(tmp_path, layer_types=["full_attention", "sliding_attention"])
    assert windows(tmp_path) == [0, 16]
    edit_config(tmp_path, layer_types=None, max_window_layers=1)
    assert windows(tmp_path) == [0, 16]
    edit_config(tmp_path, layer_types=["chunked_attention"] * 2)
    with pytest.raises(ValueError, match=r"layer_types must be 2 of 'full_attention' .* got \['chunked_attention'"):
        windows(tmp_path)


def test_inserted_rows_take_the_place_of_their_tokens(tmp_path: Path) -> None:
    model = load_llama(tiny_llama.save(tmp_path), precision="W16A16", dtype="float32")
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
    model = load_llama(tiny_llama.save(tmp_path), precision="W16A16")
    assert model.image_spec is None
    with pytest.raises(ValueError, match="the model takes text only, no images"):
        model.encode_images([(torch.zeros(1, 3, 28, 28), (28, 28))])
