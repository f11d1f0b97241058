"""What one open request after the other may hold in image files."""

import pytest
from pictures import base64_of, file_of, picture

from benchmarks.timed_generator import TimedGenerator
from tinyserve.config import SamplingParams
from tinyserve.engine.generator import RequestError
from tinyserve.serve.chat_format import ChatFormat
from tinyserve.serve.image_input import read_images
from tinyserve.serve.request_reader import Question, RequestReader

FILE = file_of(picture("RGB", 60, 40))
IMAGES = read_images([base64_of(FILE)])


def reader(max_held_bytes: int) -> RequestReader:
    generator = TimedGenerator()
    return RequestReader(generator, ["m"], ChatFormat("m", generator.apply_chat_template), max_held_bytes)


def question(number: int) -> Question:
    return Question("<image>" * number, IMAGES * number, SamplingParams())


def test_images_of_open_requests_are_bounded() -> None:
    one = reader(2 * len(FILE))
    with one.held(question(1)), one.held(question(1)), one.held(question(0)):
        with pytest.raises(RequestError, match=f"images of open requests take {2 * len(FILE)} bytes") as error:
            with one.held(question(1)):
                pass
    assert error.value.code == 42903
    with one.held(question(2)):
        pass


def test_a_request_alone_may_hold_more() -> None:
    one = reader(1)
    with one.held(question(3)):
        pass
    with pytest.raises(KeyError), one.held(question(1)):
        raise KeyError
    with one.held(question(3)):
        pass
