"""Pictures of this machine's files on their way to a worker, as data: URLs; of an animation, some of its frames.

It decides what is sent: a file as it is where a worker accepts it and it is no larger than LLaVA's web page would send,
else a smaller picture as PNG. What a worker accepts is decided there. Knows no conversation.
"""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from tinyserve.engine.image_file import FORMATS

MAX_LONG_EDGE = 1344  # px, as in llava/conversation.py
MAX_SHORT_EDGE = 672  # px, of a picture that is made smaller
NUM_FRAMES = 8  # of a video, where nobody says


class AttachmentError(ValueError):
    """A file cannot be sent; the text names it and says why."""


def image_url(path: Path) -> str:
    """The picture in a file. Raises AttachmentError."""
    image = _open(path)
    if image.format in FORMATS and max(image.size) <= MAX_LONG_EDGE:
        return _data_url(path.read_bytes(), Image.MIME[image.format])
    try:
        return _png_url(ImageOps.exif_transpose(image))
    except Exception as error:  # each of Pillow's decoders has its own
        raise AttachmentError(f"{path} cannot be decoded: {error}") from error


def frame_urls(path: Path, number: int = NUM_FRAMES) -> list[str]:
    """Evenly spaced frames of an animated GIF, WebP or PNG, the first and the last among them; all if they are fewer.

    Raises:
        AttachmentError: also when it is no animation.
    """
    image = _open(path)
    count = int(getattr(image, "n_frames", 1))
    if count < 2:
        raise AttachmentError(f"{path} is no animation (GIF, WebP, PNG) that a video's frames could be taken of")
    number = min(number, count)
    chosen = [index * (count - 1) // max(1, number - 1) for index in range(number)]
    urls = []
    try:
        for index in chosen:
            image.seek(index)
            urls.append(_png_url(image.copy()))
    except Exception as error:
        raise AttachmentError(f"{path} cannot be decoded: {error}") from error
    return urls


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:  # also what is no picture
        raise AttachmentError(f"{path} cannot be read as a picture: {error}") from error


def _png_url(image: Image.Image) -> str:
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    smaller = _shrunk(image.convert("RGBA" if has_alpha else "RGB"))
    buffer = io.BytesIO()
    smaller.save(buffer, "PNG")
    return _data_url(buffer.getvalue(), "image/png")


def _shrunk(image: Image.Image) -> Image.Image:
    """The rule of process_image in llava/conversation.py."""
    long, short = max(image.size), min(image.size)
    if long <= MAX_LONG_EDGE:
        return image
    ratio = long / short
    short = max(1, int(min(MAX_LONG_EDGE / ratio, MAX_SHORT_EDGE, short)))
    long = min(MAX_LONG_EDGE, int(short * ratio))
    return image.resize((long, short) if image.width >= image.height else (short, long))


def _data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
