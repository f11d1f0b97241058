"""The conversation of a request: `messages` of text, or of parts as OpenAI's clients send them, with their images.

A message becomes one text in which every image is an `<image>`: where the text has none itself, each stands on a line
of its own in front of it, as LLaVA was trained. It knows no templates and does not look into the images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyserve.engine.generator import RequestError
from tinyserve.serve import fields
from tinyserve.serve.image_input import parse_images
from tinyserve.serve.templates import MARK
from tinyserve.serve.wire import ErrorCode

MAX_MESSAGES = 1000
MAX_PARTS = 1000  # of one message
ROLES = ("system", "user", "assistant")
PARTS = ("text", "image_url", "image")


@dataclass
class Conversation:
    """Messages with role and content, and the images of all `<image>` in them, in order."""

    messages: list[dict[str, str]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)  # base64 or data: URLs


@dataclass
class _Message:
    role: str
    text: str
    images: list[str | None]  # None: the next one of the field `images`


def parse_messages(body: Mapping[str, Any]) -> Conversation | None:
    """The fields `messages` and `images` together; None where there are no messages.

    Images of the field `images` belong to the parts of type image and to every `<image>` in a text, in order. Where
    there is neither, the first message of the user shows them.

    Raises:
        RequestError: a field is malformed, or images are missing or left over.
    """
    value = body.get("messages")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise fields.wrong_type("messages", value, "a list of at least one message")
    if len(value) > MAX_MESSAGES:
        raise RequestError(
            ErrorCode.OUT_OF_RANGE, f"messages must be at most {MAX_MESSAGES} messages, got {len(value)}"
        )
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(value)]
    given = parse_images(body)
    if not given and not any(message.images for message in messages):  # then `<image>` may be mere text
        return Conversation([{"role": message.role, "content": message.text} for message in messages])
    if given and not any(message.images or MARK in message.text for message in messages):
        first = next((message for message in messages if message.role == "user"), messages[0])
        first.images = [None] * len(given)
    return _joined(messages, given)


def _joined(messages: Sequence[_Message], given: Sequence[str]) -> Conversation:
    conversation = Conversation()
    left = iter(given)
    for message in messages:
        # Only the user shows images: in an answer that is sent back the mark is mere text.
        text = message.text if message.role == "user" else message.text.replace(MARK, "< image>")
        num_marks = text.count(MARK)
        marks = f"{MARK}\n" * (len(message.images) - num_marks)
        conversation.messages.append({"role": message.role, "content": marks + text})
        sources = message.images + [None] * (num_marks - len(message.images))
        conversation.images += [_next(left, given) if source is None else source for source in sources]
    if unused := len(list(left)):
        raise RequestError(ErrorCode.VALIDATION, f"images has {len(given)} images, messages show {len(given) - unused}")
    return conversation


def _next(left: Iterator[str], given: Sequence[str]) -> str:
    image = next(left, None)
    if image is None:
        raise RequestError(ErrorCode.VALIDATION, f"messages show more images than images has, which are {len(given)}")
    return image


def _message(message: object, name: str) -> _Message:
    if not isinstance(message, dict):
        raise fields.wrong_type(name, message, "an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise fields.wrong_type(f"{name}.role", role, "one of " + ", ".join(ROLES))
    if isinstance(content, str):
        return _Message(role, fields.valid_unicode(f"{name}.content", content), [])
    if not isinstance(content, list):
        raise fields.wrong_type(f"{name}.content", content, "a string or a list of parts")
    if len(content) > MAX_PARTS:
        raise RequestError(
            ErrorCode.OUT_OF_RANGE, f"{name}.content must be at most {MAX_PARTS} parts, got {len(content)}"
        )
    texts: list[str] = []
    images: list[str | None] = []
    for index, part in enumerate(content):
        where = f"{name}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") not in PARTS:
            raise fields.wrong_type(where, part, "an object whose type is one of " + ", ".join(PARTS))
        if part["type"] == "text":
            texts.append(fields.text({f"{where}.text": part.get("text")}, f"{where}.text") or "")
        else:
            images.append(None if part["type"] == "image" else _url(part.get("image_url"), f"{where}.image_url"))
    if images and role != "user":
        raise RequestError(ErrorCode.VALIDATION, f"{name}: only the user shows images, got some of the {role}")
    return _Message(role, "\n".join(texts), images)


def _url(value: object, name: str) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise fields.wrong_type(name, value, "an object with the url")
    return url
