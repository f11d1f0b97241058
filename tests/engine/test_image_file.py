"""Which files are accepted as pictures, and what is known of them before they are decoded."""

import io

import numpy as np
import pytest
from pictures import KINDS, file_of, picture, png_header
from PIL import Image, ImageOps

from tinyserve.engine import image_file
from tinyserve.engine.image_file import ImageError, ImageFile
from tinyserve.models.image_pixels import to_rgb

RGB = picture("RGB", 60, 40)


@pytest.mark.parametrize("kind", KINDS, ids=["-".join(map(str, kind)) for kind in KINDS])
def test_every_kind_survives_its_file(kind: tuple[str, int, int]) -> None:
    image = picture(*kind)
    data = file_of(image, "JPEG" if kind[0] == "CMYK" else "PNG", **({"transparency": 3} if " " in kind[0] else {}))
    read = ImageFile.read(data)
    assert (read.width, read.height) == image.size
    expected = to_rgb(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(to_rgb(read.decode())), np.asarray(expected))


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {}), ("GIF", {})])
def test_the_formats(format: str, options: dict[str, bool]) -> None:
    read = to_rgb(ImageFile.read(file_of(RGB, format, **options)).decode())
    difference = np.asarray(read).astype(int) - np.asarray(RGB)
    assert np.abs(difference).mean() < (1e-9 if format in ("PNG", "WEBP") else 16)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "lime")]
    data = file_of(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    red, _, blue = np.asarray(to_rgb(ImageFile.read(data).decode())).mean(axis=(0, 1))
    assert red > 200 > 60 > blue


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = file_of(RGB, format, exif=exif)
    read = ImageFile.read(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    assert (read.width, read.height) == upright.size
    np.testing.assert_array_equal(np.asarray(read.decode()), np.asarray(upright.convert("RGB")))


def test_broken_exif_is_ignored() -> None:
    data = file_of(RGB, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert ImageFile.read(data).decode().size == RGB.size


@pytest.mark.parametrize("part", [b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00", b"\xff\xe1\x00\x0aExif\0\0xx"])
def test_a_jpeg_of_too_many_parts_is_refused_unread(part: bytes) -> None:
    data = file_of(RGB, "JPEG", progressive=True)
    assert ImageFile.read(data).decode().size == RGB.size
    with pytest.raises(ImageError, match="more than 100 scans or 16 parts of EXIF"):
        ImageFile.read(data[:2] + part * 120 + data[2:])


def test_the_digest_is_that_of_the_file() -> None:
    one, other = file_of(RGB), file_of(picture("RGB", 60, 40, seed=1))
    assert ImageFile.read(one).digest == ImageFile.read(bytes(one)).digest != ImageFile.read(other).digest


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (10_000, 10_000, "10000 x 10000 = 100000000 pixels; at most 64000000"),
        (8001, 8000, "64008000 pixels"),
        (1, 16_385, "16384 on a side"),
        (60_000, 60_000, "far more than the 64000000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_large_is_refused_before_it_is_decoded(width: int, height: int, words: str) -> None:
    with pytest.raises(ImageError, match=words):  # decoding would find that the data are missing
        ImageFile.read(png_header(width, height))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.7 ...", b"<svg xmlns='...'/>", b"BM" + bytes(60), b"\0" * 100]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match="PNG, JPEG, WEBP, GIF"):
        ImageFile.read(data)


@pytest.mark.parametrize("format", ["BMP", "TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(ImageError, match="PNG, JPEG, WEBP, GIF"):
        ImageFile.read(file_of(picture("RGB", 32, 32), format))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file(format: str, share: float) -> None:
    data = file_of(picture("RGB", 200, 150), format)
    with pytest.raises(ImageError):
        ImageFile.read(data[: int(share * len(data))]).decode()


def test_a_promise_that_the_data_do_not_keep() -> None:
    with pytest.raises(ImageError, match="damaged or truncated"):
        ImageFile.read(png_header(500, 500)).decode()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_random_damage_is_an_image_error_or_a_picture_of_the_size_promised(format: str) -> None:
    random = np.random.default_rng(5)
    whole = np.frombuffer(file_of(RGB, format), dtype=np.uint8)
    for _ in range(150):
        data = whole.copy()
        data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
        try:
            read = ImageFile.read(data.tobytes())
            assert read.decode().size == (read.width, read.height)
        except ImageError:
            pass


def test_the_largest_is_accepted() -> None:
    side = int(image_file.MAX_PIXELS**0.5)
    read = ImageFile.read(png_header(side, side))
    assert (read.width, read.height) == (8000, 8000)
