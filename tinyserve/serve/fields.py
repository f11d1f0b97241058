"""Single fields of a client's JSON object, by type: null counts as not given.

What a field may hold beyond its type is decided by whoever asks for it.
"""

import math
from collections.abc import Mapping
from typing import Any

from tinyserve.engine.generator import RequestError
from tinyserve.serve.wire import ErrorCode


def text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong_type(name, value, "a string")
    return None if value is None else valid_unicode(name, value)


def number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # a whole number beyond any range


def whole(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number; 512.0, as sliders of web pages send it, is one."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, value, "a whole number")
    # Far outside every range, but small enough that comparisons and messages stay cheap.
    return max(-(2**63), min(value, 2**63))


def flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_type(name, value, "true or false")
    return value


def valid_unicode(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(ErrorCode.VALIDATION, f"{name} is not valid Unicode: {error.reason}") from error
    return text


def wrong_type(name: str, value: object, allowed: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, f"{name} must be {allowed}, got {short(value)}")


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
