"""What open requests may take together."""

import pytest

from benchmarks.timed_generator import TimedGenerator
from tinyserve.engine.generator import RequestError
from tinyserve.serve.chat_format import ChatFormat
from tinyserve.serve.request_reader import RequestReader


def reader(max_held_bytes: int) -> RequestReader:
    generator = TimedGenerator()
    return RequestReader(generator, ["m"], ChatFormat("m", generator.apply_chat_template), max_held_bytes)


def test_open_requests_are_bounded() -> None:
    one = reader(200)
    with one.held(100), one.held(100), one.held(0):
        with pytest.raises(RequestError, match="open requests take 200 bytes") as error:
            with one.held(1):
                pass
    assert error.value.code == 42903
    with one.held(200):
        pass


def test_a_request_alone_may_take_more() -> None:
    one = reader(1)
    with one.held(300):
        pass
    with pytest.raises(KeyError), one.held(100):
        raise KeyError
    with one.held(300):
        pass
