"""What a generation request asks for: the JSON of a client, checked field by field.

Fields of all three lineages are understood: LLaVA's (`prompt`, `temperature`, `top_p`, `max_new_tokens`, `stop`,
`images`), FastChat's (`echo`, `stop_token_ids`, `top_k`, penalties) and our own (`messages`, `stream_format`, `seed`,
`min_p`, `ignore_eos`, `priority`). A null counts as not given and unknown fields are ignored, as upstream does. It
knows no engine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyserve.config import MAX_STOP_CHARACTERS, SamplingParams
from tinyserve.engine.generator import RequestError
from tinyserve.serve.wire import ErrorCode

MAX_MESSAGES = 1000
MAX_PRIORITY = 1000
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class GenerateParams:
    """One request. Exactly one of `prompt` and `messages` is given."""

    prompt: str | None
    messages: tuple[dict[str, str], ...] | None  # a conversation, for which the worker applies the model's template
    sampling: SamplingParams
    priority: int = 0  # the lower, the sooner
    model: str | None = None
    echo: bool = True  # cumulative text starts with the prompt
    cumulative: bool = True  # False ("stream_format": "delta"): a record holds its new text alone


def parse(body: Mapping[str, Any]) -> GenerateParams:
    """Checks a request.

    Raises:
        RequestError: 40001 for a wrong type or a missing prompt, 40302 for a value outside its range; the message names
            the field, what came and what is allowed.
    """
    _refuse_images(body)
    prompt = _text(body, "prompt")
    messages = _messages(body)
    if (prompt is None) == (messages is None):
        what = "neither" if prompt is None else "both"
        raise RequestError(ErrorCode.VALIDATION, f"a request needs either prompt or messages, got {what}")
    stream_format = _text(body, "stream_format") or "cumulative"
    if stream_format not in ("cumulative", "delta"):
        raise RequestError(
            ErrorCode.VALIDATION, f"stream_format must be cumulative or delta, got {_short(stream_format)}"
        )
    return GenerateParams(
        prompt=prompt,
        messages=messages,
        sampling=_sampling(body),
        priority=_priority(body),
        model=_text(body, "model"),
        echo=_flag(body, "echo", True) and messages is None,
        cumulative=stream_format == "cumulative",
    )


def _sampling(body: Mapping[str, Any]) -> SamplingParams:
    default = SamplingParams()
    given: dict[str, Any] = {
        "max_new_tokens": _whole(body, "max_new_tokens"),
        "temperature": _number(body, "temperature"),
        "top_p": _number(body, "top_p"),
        "top_k": _whole(body, "top_k"),
        "min_p": _number(body, "min_p"),
        "repetition_penalty": _number(body, "repetition_penalty"),
        "presence_penalty": _number(body, "presence_penalty"),
        "frequency_penalty": _number(body, "frequency_penalty"),
        "seed": _whole(body, "seed"),
        "stop": _stop(body),
        "stop_token_ids": _stop_token_ids(body),
        "ignore_eos": _flag(body, "ignore_eos", default.ignore_eos),
    }
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise RequestError(ErrorCode.OUT_OF_RANGE, str(error)) from error


def _priority(body: Mapping[str, Any]) -> int:
    priority = _whole(body, "priority") or 0
    if abs(priority) > MAX_PRIORITY:
        raise RequestError(
            ErrorCode.OUT_OF_RANGE, f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {priority}"
        )
    return priority


def _refuse_images(body: Mapping[str, Any]) -> None:
    images = body.get("images")
    if images:
        count = f"{len(images)} images" if isinstance(images, list) else _short(images)
        raise RequestError(ErrorCode.VALIDATION, f"images: this model reads text only, got {count}")


def _messages(body: Mapping[str, Any]) -> tuple[dict[str, str], ...] | None:
    value = body.get("messages")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise _wrong_type("messages", value, "a list of at least one message")
    if len(value) > MAX_MESSAGES:
        raise RequestError(
            ErrorCode.OUT_OF_RANGE, f"messages must be at most {MAX_MESSAGES} messages, got {len(value)}"
        )
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", message, "an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _wrong_type(f"messages[{index}].role", role, "one of " + ", ".join(ROLES))
        if not isinstance(content, str):
            raise _wrong_type(f"messages[{index}].content", content, "a string")
        messages.append({"role": role, "content": _valid_unicode(f"messages[{index}].content", content)})
    return tuple(messages)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = body.get("stop")
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _wrong_type("stop", value, f"a string or a list of strings of at most {MAX_STOP_CHARACTERS} characters")
    # An empty stop string, which some conversation templates send, stops nothing.
    return tuple(_valid_unicode("stop", text) for text in texts if text)


def _stop_token_ids(body: Mapping[str, Any]) -> tuple[int, ...] | None:
    value = body.get("stop_token_ids")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise _wrong_type("stop_token_ids", value, "a list of whole numbers")
    return tuple(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    return None if value is None else _valid_unicode(name, value)


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # a whole number beyond any range


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number; 512.0, as sliders of web pages send it, is one."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, value, "a whole number")
    # Far outside every range, but small enough that comparisons and messages stay cheap.
    return max(-(2**63), min(value, 2**63))


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "true or false")
    return value


def _valid_unicode(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(ErrorCode.VALIDATION, f"{name} is not valid Unicode: {error.reason}") from error
    return text


def _wrong_type(name: str, value: object, allowed: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, f"{name} must be {allowed}, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
