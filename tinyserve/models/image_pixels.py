"""From a picture to the tiles that a vision tower reads, as an ImageSpec wants them.

It decides pixels: conversion to RGB, resizing, padding, cutting, normalising, equal to what transformers' image
processors make of the same picture. How many tiles there are is image_spec.py's decision; where pictures come from is
the engine's. Memory stays near that of the picture itself, however long and thin it is.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tinyserve.models.image_spec import ImageSpec

MAX_RESIZED_PIXELS = 1 << 24  # of a picture that is resized as a whole before its middle is cut out
BAND = 256  # rows that are padded and resized at a time


def to_rgb(image: Image.Image) -> Image.Image:
    """In RGB, what is transparent over white, as transformers' convert_to_rgb does it.

    Of 16 bits a channel, Pillow keeps what fits in 8 and clips the rest; so does every processor that is built on it.
    """
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def pixels(image: Image.Image, spec: ImageSpec) -> Tensor:
    """fp32 [tiles, 3, S, S] of a picture in any of Pillow's modes: the whole one first, then row by row its tiles."""
    tiles = _TILES[spec.aspect_ratio](to_rgb(image), spec)
    values = np.stack([np.asarray(tile) for tile in tiles]).astype(np.float32) * np.float32(spec.rescale)
    values -= np.asarray(spec.mean, dtype=np.float32)
    values /= np.asarray(spec.std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def _square(image: Image.Image, spec: ImageSpec) -> list[Image.Image]:
    """The shortest edge becomes S and the middle is cut out; without `center_crop` both sides become S."""
    size = spec.image_size
    if not spec.center_crop:
        return [image.resize((size, size), spec.resample)]
    short, long = min(image.size), max(image.size)
    long = int(size * long / short)
    width, height = (size, long) if image.width <= image.height else (long, size)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height <= MAX_RESIZED_PIXELS:
        return [image.resize((width, height), spec.resample).crop((left, top, left + size, top + size))]
    # A strip: only the part that will be seen. Its corners are no whole pixels and Pillow takes them in single
    # precision, so a value may differ by one of 255 from the exact one.
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return [image.resize((size, size), spec.resample, box=box)]


def _pad(image: Image.Image, spec: ImageSpec) -> list[Image.Image]:
    """LLaVA's expand2square: padded with the mean colour to a square, which is then resized to S.

    The square itself is never there, since its side may be thousands of pixels where the picture has one. Pillow
    resizes rows before columns, so a band of rows can be padded and resized on its own.
    """
    size, side = spec.image_size, max(image.size)
    colour = (int(255 * spec.mean[0]), int(255 * spec.mean[1]), int(255 * spec.mean[2]))
    left, top = (side - image.width) // 2, (side - image.height) // 2
    columns = Image.new("RGB", (size, side), colour)
    for start in range(0, image.height, BAND):
        height = min(BAND, image.height - start)
        band = Image.new("RGB", (side, height), colour)
        band.paste(image.crop((0, start, image.width, start + height)), (left, 0))
        columns.paste(band.resize((size, height), spec.resample), (0, top + start))
    return [columns.resize((size, size), spec.resample)]


def _anyres(image: Image.Image, spec: ImageSpec) -> list[Image.Image]:
    """The whole picture as one tile, then the tiles of the picture fitted into its best resolution on black."""
    size = spec.image_size
    width, height = spec.best_resolution(*image.size)
    scale_x, scale_y = width / image.width, height / image.height
    if scale_x < scale_y:
        fitted = (width, min(math.ceil(image.height * scale_x), height))
    else:
        fitted = (min(math.ceil(image.width * scale_y), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(fitted, spec.resample), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    corners = [(left, top) for top in range(0, height, size) for left in range(0, width, size)]
    tiles = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
    return [image.resize((size, size), spec.resample), *tiles]


_TILES: Mapping[str, Callable[[Image.Image, ImageSpec], list[Image.Image]]] = {
    "square": _square,
    "pad": _pad,
    "anyres": _anyres,
}
