"""Messages with images in them become texts with marks, and the images in the order of the marks."""

from typing import Any

import pytest

from tinyserve.engine.generator import RequestError
from tinyserve.serve.chat_messages import Conversation, parse_messages

A, B, C = "QUJD", "data:image/png;base64,QUJE", "QUJF"


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def url(content: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": content}}


IMAGE = {"type": "image"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def parsed(messages: list[dict[str, Any]], images: list[str] | None = None) -> Conversation:
    conversation = parse_messages({"messages": messages, "images": images})
    assert conversation is not None
    return conversation


@pytest.mark.parametrize(
    ("content", "images", "expected", "placed"),
    [
        ("plain", [], "plain", []),
        ("about <image> in HTML", [], "about <image> in HTML", []),
        ([text("one"), text("two")], [], "one\ntwo", []),
        ([text("what?"), url(A)], [], "<image>\nwhat?", [A]),
        ([url(A), text("what?"), url(B)], [], "<image>\n<image>\nwhat?", [A, B]),
        ([url(A), text("is <image> like <image>?"), url(B)], [], "is <image> like <image>?", [A, B]),
        ([url(A), text("is <image> like this?"), url(B)], [], "<image>\nis <image> like this?", [A, B]),
        ([IMAGE, text("what?")], [A], "<image>\nwhat?", [A]),
        ([url(B), IMAGE, text("what?")], [A], "<image>\n<image>\nwhat?", [B, A]),
        ("what?", [A, C], "<image>\n<image>\nwhat?", [A, C]),
        ("this <image> and <image>", [A, C], "this <image> and <image>", [A, C]),
        ([{"type": "image_url", "image_url": A}], [], "<image>\n", [A]),
    ],
)
def test_one_message(content: Any, images: list[str], expected: str, placed: list[str]) -> None:
    conversation = parsed([user(content)], images)
    assert conversation.messages == [{"role": "user", "content": expected}]
    assert conversation.images == placed


def test_a_conversation() -> None:
    system, answer = {"role": "system", "content": "s"}, {"role": "assistant", "content": "fine"}
    talk = [system, user([url(A), text("what?")]), answer, user("and <image>?"), answer, user([text("this"), url(B)])]
    conversation = parsed(talk, [C])
    contents = [message["content"] for message in conversation.messages]
    assert contents == ["s", "<image>\nwhat?", "fine", "and <image>?", "fine", "<image>\nthis"]
    assert conversation.images == [A, C, B]
    first = parsed([system, user("what?"), answer, user("sure?")], [A])
    assert [message["content"] for message in first.messages] == ["s", "<image>\nwhat?", "fine", "sure?"]


@pytest.mark.parametrize(
    ("messages", "images", "words"),
    [
        ([user([IMAGE, IMAGE])], [A], "messages show more images than images has, which are 1"),
        ([user([IMAGE])], [], "messages show more images than images has, which are 0"),
        ([user([IMAGE])], [A, B, C], "images has 3 images, messages show 1"),
        ([user([{"type": "audio"}])], [], r"messages\[0\].content\[0\] must be an object whose type is one of text"),
        ([user(["text"])], [], r"messages\[0\].content\[0\] must be an object"),
        ([user([{"type": "image_url"}])], [], r"content\[0\].image_url must be an object with the url, got None"),
        ([user([{"type": "image_url", "image_url": {"url": 3}}])], [], "must be an object with the url"),
        ([user([{"type": "text", "text": 3}])], [], r"messages\[0\].content\[0\].text must be a string"),
        ([user(3)], [], r"messages\[0\].content must be a string or a list of parts"),
        ([{"role": "assistant", "content": [url(A)]}], [], "only the user shows images, got some of the assistant"),
        ([user([text("x")] * 1001)], [], "must be at most 1000 parts, got 1001"),
        ([{"role": "tool", "content": "x"}], [], r"messages\[0\].role must be one of system, user, assistant"),
    ],
)
def test_mistakes(messages: list[dict[str, Any]], images: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        parsed(messages, images)
    assert error.value.code in (40001, 40302)


def test_only_the_users_marks_are_images() -> None:
    answer = {"role": "assistant", "content": "an <image> is a tag"}
    conversation = parsed([user([url(A), text("what?")]), answer, user("and?")], [])
    assert [message["content"] for message in conversation.messages] == [
        "<image>\nwhat?",
        "an < image> is a tag",
        "and?",
    ]
    assert conversation.images == [A]


def test_without_messages_there_is_no_conversation() -> None:
    assert parse_messages({"prompt": "<image>", "images": [A]}) is None
