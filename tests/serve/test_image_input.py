"""Images over the wire: what is accepted, and what each mistake is told."""

import base64
from typing import Any

import pytest
from pictures import base64_of, file_of, picture

from tinyserve.engine.generator import RequestError
from tinyserve.serve.image_input import MAX_IMAGES, check_number, parse_images, read_images

PNG = file_of(picture("RGB", 30, 20))
TEXT = base64_of(PNG)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:image/png;name=a.png;base64,{TEXT}",
        base64.encodebytes(PNG).decode(),
        f" {TEXT}\n",
    ],
    ids=["plain", "data", "data without type", "data with a name", "lines", "blanks"],
)
def test_what_is_accepted(text: str) -> None:
    (image,) = read_images([text])
    assert (image.data, image.width, image.height) == (PNG, 30, 20)


def test_a_long_text_is_decoded_in_parts() -> None:
    data = file_of(picture("RGB", 900, 700), "PNG", compress_level=0)
    assert len(base64_of(data)) > 2 << 20
    assert read_images([base64_of(data)])[0].data == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://example.com/cat.png", "is a URL.*only inline data"),
        ("https://example.com/cat.png", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("ftp://example.com/" + "x" * 500, "is a URL"),
        ("data:image/png,notbase64", "is a URL"),
        ("/etc/passwd", "is not base64"),
        ("***", "is not base64"),
        (TEXT[:-1], "is not base64"),
        (TEXT + "é", "is not base64"),
        (TEXT[:8] + "!" + TEXT[8:], "is not base64"),
        (TEXT[:8] + "====" + TEXT[8:], "is not base64"),
        (TEXT[:8] + "-_-_" + TEXT[12:], "is not base64"),
        ("", "is not a readable image"),
        (base64_of(b"hello there"), "is not a readable image of the formats PNG, JPEG, WEBP, GIF"),
        (base64_of(PNG[:20]), "is not a readable image"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=rf"^images\[1\] {words}") as error:
        read_images([TEXT, text])
    assert error.value.code == 40001
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", ["text", {"a": 1}, [1], [None], [[TEXT]]])
def test_the_fields_type(value: Any) -> None:
    with pytest.raises(RequestError, match="images must be a list of base64 strings"):
        parse_images({"images": value})


def test_how_many() -> None:
    assert parse_images({}) == parse_images({"images": None}) == parse_images({"images": []}) == ()
    check_number([TEXT] * MAX_IMAGES)
    with pytest.raises(RequestError, match="at most 32, got 33") as error:
        check_number([TEXT] * (MAX_IMAGES + 1))
    assert error.value.code == 40302
