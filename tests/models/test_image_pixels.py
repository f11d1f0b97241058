"""Tiles equal those of transformers' image processors, and of LLaVA's own padding, on every kind of picture."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import KINDS, picture
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, SiglipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tinyserve.models import image_pixels
from tinyserve.models.image_pixels import pixels, to_rgb
from tinyserve.models.image_spec import ImageSpec

SIZE = 28
PINPOINTS = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))  # (width, height)
CLIP = ImageSpec(
    SIZE, 2, 4, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), center_crop=True
)
SIGLIP = ImageSpec(SIZE, 2, 4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), center_crop=False)
SIDES = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}

pictures = pytest.mark.parametrize("kind", KINDS, ids=["-".join(map(str, kind)) for kind in KINDS])


def processed(processor: Any, image: Image.Image) -> Tensor:
    """[tiles, 3, S, S]"""
    values: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return values.reshape(-1, 3, SIZE, SIZE)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=1e-5)


def llava_square(image: Image.Image) -> Image.Image:
    """The definition: a square of the mean colour with the picture in its middle."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in CLIP.mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def test_there_are_thirty_kinds() -> None:
    assert len(KINDS) == 30


@pictures
def test_square_with_the_middle_cut_out(kind: tuple[str, int, int]) -> None:
    image = picture(*kind)
    assert_close(pixels(image, CLIP), processed(CLIPImageProcessorPil(**SIDES), image))


@pictures
def test_square_by_resizing_both_sides(kind: tuple[str, int, int]) -> None:
    image = picture(*kind)
    processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    assert_close(pixels(image, SIGLIP), processed(processor, image))


@pictures
def test_padded_to_a_square(kind: tuple[str, int, int]) -> None:
    image = picture(*kind)
    padded = pixels(image, replace(CLIP, aspect_ratio="pad"))
    assert_close(padded, processed(CLIPImageProcessorPil(**SIDES), llava_square(to_rgb(image))))
    assert_close(padded, processed(LlavaImageProcessorPil(**SIDES, do_pad=True), image))


@pictures
def test_any_resolution(kind: tuple[str, int, int]) -> None:
    image = picture(*kind)
    processor = LlavaNextImageProcessorPil(**SIDES, image_grid_pinpoints=[[h, w] for w, h in PINPOINTS])
    spec = replace(CLIP, aspect_ratio="anyres", pinpoints=PINPOINTS)
    tiles = pixels(image, spec)
    assert_close(tiles, processed(processor, image))
    assert len(tiles) == spec.num_tiles(*image.size)


def test_a_palettes_transparent_colour_is_white() -> None:
    image = picture("P with transparency", 50, 40)
    transparent = np.asarray(image) == 3
    assert transparent.any()
    assert (np.asarray(to_rgb(image))[transparent] == 255).all()


@pytest.mark.parametrize("size", [(1, 400), (900, 2)])
def test_a_strip_of_which_only_the_middle_is_resized(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture("RGB", *size)
    whole = pixels(image, CLIP)
    monkeypatch.setattr(image_pixels, "MAX_RESIZED_PIXELS", 0)
    one_of_255 = 1.01 / 255 / min(CLIP.std)
    torch.testing.assert_close(pixels(image, CLIP), whole, rtol=0, atol=one_of_255)


@pytest.mark.parametrize("aspect_ratio", ["square", "pad", "anyres"])
@pytest.mark.parametrize("size", [(1, 16000), (16000, 1)])
def test_a_strip_needs_no_square_of_its_length(aspect_ratio: str, size: tuple[int, int]) -> None:
    """The square would have 256 million pixels; with the shortest edge as long as a tile there would be 1.8 billion."""
    image = picture("L", *size)
    spec = replace(CLIP, image_size=336, aspect_ratio=aspect_ratio, pinpoints=((336, 672), (672, 336)))
    assert pixels(image, spec).shape[1:] == (3, 336, 336)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_every_filter(resample: Image.Resampling) -> None:
    image = picture("RGB", 90, 401)
    processor = CLIPImageProcessorPil(**SIDES, resample=resample)
    spec = replace(CLIP, resample=int(resample), aspect_ratio="pad")
    assert_close(pixels(image, spec), processed(processor, llava_square(image)))
