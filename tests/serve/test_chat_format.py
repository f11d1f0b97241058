"""Which template a model's conversations go by: the one named, the tokenizer's, or the one for its name."""

import logging

import pytest

from tinyserve.serve.chat_format import ChatFormat, Message

TALK = [{"role": "user", "content": "Hi"}]


def own(messages: list[Message]) -> str:
    return "".join(f"[{message['role']}] {message['content']}\n" for message in messages)


def test_the_tokenizers_own() -> None:
    chat_format = ChatFormat("llava-v1.5-7b", own)
    assert chat_format.prompt(TALK) == "[user] Hi\n"
    assert chat_format.stop == ()
    assert chat_format.as_fastchat()["name"] == "llava-v1.5-7b"


def test_the_one_that_is_named() -> None:
    chat_format = ChatFormat("llava-v1.5-7b", own, "mistral_instruct")
    assert chat_format.prompt(TALK) == "[INST] Hi [/INST]"
    assert chat_format.stop == ("</s>",)
    conv = chat_format.as_fastchat()
    assert (conv["name"], conv["sep_style"], conv["roles"]) == ("mistral_instruct", 7, ["[INST]", "[/INST]"])


def test_the_one_for_the_name_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chat_format = ChatFormat("llava-v1.5-7b", None)
    assert chat_format.prompt(TALK).endswith("USER: Hi ASSISTANT:")
    assert "LLaVA's llava_v1, for the name llava-v1.5-7b; --conv-mode chooses" in caplog.text


def test_no_such_template() -> None:
    with pytest.raises(ValueError, match=r"--conv-mode must be one of default, v0, .*got 'v2'"):
        ChatFormat("m", own, "v2")
