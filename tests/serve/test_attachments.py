"""What a client sends of a picture file, and of an animation."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import file_of, picture
from PIL import Image

from tinyserve.serve.attachments import AttachmentError, frame_urls, image_url


def opened(url: str) -> Image.Image:
    head, _, text = url.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert head == f"data:{Image.MIME[str(image.format)]};base64"
    return image


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_small_file_is_sent_as_it_is(tmp_path: Path, format: str) -> None:
    data = file_of(picture("RGB", 60, 40), format)
    (tmp_path / "file").write_bytes(data)
    assert image_url(tmp_path / "file").endswith(base64.b64encode(data).decode())


@pytest.mark.parametrize("format", ["BMP", "TIFF"])
def test_other_formats_become_png(tmp_path: Path, format: str) -> None:
    image = picture("RGB", 60, 40)
    (tmp_path / "file").write_bytes(file_of(image, format))
    np.testing.assert_array_equal(np.asarray(opened(image_url(tmp_path / "file"))), np.asarray(image))


def llavas_size(width: int, height: int) -> tuple[int, int]:
    """The definition in llava/conversation.py."""
    ratio = max(width, height) / min(width, height)
    short = int(min(1344 / ratio, 672, min(width, height)))
    long = int(short * ratio)
    return (short, long) if height > width else (long, short)


@pytest.mark.parametrize("size", [(2000, 1500), (1500, 2000), (1400, 300), (1345, 1345), (4000, 2)])
def test_a_large_picture_is_made_smaller(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.linear_gradient("L").resize(size).save(tmp_path / "file.jpg")
    sent = opened(image_url(tmp_path / "file.jpg"))
    assert max(sent.size) <= 1344
    assert sent.size == (llavas_size(*size) if size[1] > 2 else (1344, 1))


def test_a_large_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.linear_gradient("L").resize((2000, 1000)).save(tmp_path / "file.jpg", exif=exif)
    assert opened(image_url(tmp_path / "file.jpg")).size == (672, 1344)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize(("number", "expected"), [(4, [0, 3, 6, 10]), (1, [0]), (2, [0, 10]), (20, list(range(11)))])
def test_frames_of_an_animation(tmp_path: Path, format: str, number: int, expected: list[int]) -> None:
    frames = [Image.new("RGB", (20, 10), (20 * index, 0, 0)) for index in range(11)]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(tmp_path / "file", format, save_all=True, append_images=frames[1:], duration=50, **options)
    sent = [opened(url).convert("RGB").getpixel((5, 5)) for url in frame_urls(tmp_path / "file", number)]
    assert sent == [(20 * index, 0, 0) for index in expected]


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    picture("RGB", 8, 8).save(tmp_path / "still.png")
    (tmp_path / "cut.bmp").write_bytes(file_of(picture("RGB", 80, 80), "BMP")[:2000])
    for function, name, words in (
        (image_url, "missing", "cannot be read as a picture.*No such file"),
        (image_url, "text", "cannot be read as a picture"),
        (image_url, "cut.bmp", "cannot be decoded"),
        (frame_urls, "still.png", "is no animation"),
    ):
        with pytest.raises(AttachmentError, match=f"{name} {words}"):
            function(tmp_path / name)
