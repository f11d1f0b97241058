"""The images of a request as they come over the wire: base64, plain or in a data: URL. Nothing is ever fetched.

It decides how many there may be and turns their text into files; what a file may be is decided in engine/image_file.py.
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinyserve.engine.generator import RequestError
from tinyserve.engine.image_file import ImageError, ImageFile
from tinyserve.serve import fields
from tinyserve.serve.wire import ErrorCode

MAX_IMAGES = 32  # of one request
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BLANKS = b" \t\r\n\v\f"  # between the lines of a mail, for example
_STEP = 1 << 20  # characters decoded at a time: other threads run in between


def parse_images(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The field `images`, LLaVA's: a list of base64 texts. Raises RequestError."""
    value = body.get("images")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise fields.wrong_type("images", value, "a list of base64 strings")
    check_number(value)
    if not all(isinstance(each, str) for each in value):
        raise fields.wrong_type("images", value, "a list of base64 strings")
    return tuple(value)


def check_number(images: Sequence[str]) -> None:
    """Raises RequestError when there are too many."""
    if len(images) > MAX_IMAGES:
        raise RequestError(ErrorCode.OUT_OF_RANGE, f"images must be at most {MAX_IMAGES}, got {len(images)}")


def read_images(images: Sequence[str]) -> list[ImageFile]:
    """Decodes the texts and reads the files' headers; takes a millisecond for each megabyte, or more.

    Raises:
        RequestError: 40001, naming the image by its index.
    """
    files = []
    for index, text in enumerate(images):
        try:
            files.append(ImageFile.read(_decoded(text)))
        except ImageError as error:
            raise RequestError(ErrorCode.VALIDATION, f"images[{index}] {error}") from error
    return files


def _decoded(text: str) -> bytes:
    """Raises ImageError."""
    if found := _DATA_URL.match(text):
        text = text[found.end() :]
    elif _URL.match(text):
        raise ImageError(
            f"is a URL ({fields.short(text[:60])}): only inline data are accepted, base64 or data:image/...;base64,"
        )
    try:
        raw = text.encode("ascii")
        parts = (raw[start : start + _STEP] for start in range(0, len(raw), _STEP))
        raw = b"".join(part.translate(None, _BLANKS) for part in parts)
        data = b"".join(binascii.a2b_base64(raw[start : start + _STEP]) for start in range(0, len(raw), _STEP))
    except ValueError as error:  # also binascii's own
        raise ImageError(f"is not base64: {error}") from error
    # The decoder leaves out what it does not know.
    if len(raw) % 4 or len(data) != len(raw) // 4 * 3 - raw[-2:].count(b"="):
        raise ImageError("is not base64: it has other characters")
    return data
