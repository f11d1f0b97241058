"""Logits of prompts with images, ours and those of transformers with its own image processor."""

from collections.abc import Sequence
from typing import Any

import flat_batch
import numpy as np
import tiny_llava
import torch
from PIL import Image
from torch import Tensor

from tinyserve.models.image_pixels import pixels
from tinyserve.models.llama import Inserted, LlamaModel

SIZES = [(61, 23), (17, 90), (57, 55), (1, 40), (200, 3)]  # (width, height) in px


def picture(index: int) -> Image.Image:
    width, height = SIZES[index]
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_prompt(model: LlamaModel, images: Sequence[int], seed: int) -> Tensor:
    """Random tokens, then for each image its placeholders and some more."""
    assert model.image_spec is not None
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, 300, (5 + seed,), generator=generator)]
    for image in images:
        placeholders = torch.full((model.image_spec.num_tokens(*SIZES[image]),), tiny_llava.IMAGE_TOKEN)
        parts += [placeholders, torch.randint(0, 300, (3,), generator=generator)]
    return torch.cat(parts)


def logits(model: LlamaModel, batch: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
    """Of prompts with these images, all in one batch; all images are encoded together."""
    assert model.image_spec is not None
    prompts = [make_prompt(model, images, seed) for seed, images in enumerate(batch)]
    order = [image for images in batch for image in images]
    encoded = model.encode_images([(pixels(picture(image), model.image_spec), SIZES[image]) for image in order])
    for image, embeddings in zip(order, encoded, strict=True):
        assert embeddings.shape == (model.image_spec.num_tokens(*SIZES[image]), model.config.hidden_size)
    rows = (torch.cat(prompts) == tiny_llava.IMAGE_TOKEN).nonzero().flatten()
    inserted = Inserted(rows, torch.cat(encoded)) if encoded else None
    return flat_batch.logits(model, prompts, inserted, chunk)


def expected(reference: Any, model: LlamaModel, batch: Sequence[Sequence[int]]) -> list[Tensor]:
    """What transformers computes, one prompt after the other, with its own image processor."""
    processor, results = tiny_llava.processor(reference), []
    for seed, images in enumerate(batch):
        inputs = dict(processor([picture(image) for image in images], return_tensors="pt")) if images else {}
        with torch.inference_mode():
            results.append(reference(make_prompt(model, images, seed).unsqueeze(0), **inputs).logits[0])
    return results


def assert_equal(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
