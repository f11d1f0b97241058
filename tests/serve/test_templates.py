"""LLaVA's templates give LLaVA's prompts: literal ones always, and those of its own package where it is installed."""

import importlib.util
from typing import Any

import pytest

from tinyserve.serve.llava_templates import TEMPLATES, template_for
from tinyserve.serve.templates import Message

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
TALK = [
    {"role": "user", "content": "How are {you}?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "And now?"},
]
WITH_IMAGE = [{"role": "user", "content": "<image>\nWhat is this?"}, *TALK[1:]]
SYSTEM = {"role": "system", "content": "Be brief."}

needs_llava = pytest.mark.skipif(importlib.util.find_spec("llava") is None, reason="llava-torch is not installed")
needs_fastchat = pytest.mark.skipif(importlib.util.find_spec("fastchat") is None, reason="fschat is not installed")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava_v0", f"{HUMAN}###Human: How are {{you}}?###Assistant: Fine.###Human: And now?###Assistant:"),
        ("llava_v1", f"{HUMAN} USER: How are {{you}}? ASSISTANT: Fine.</s>USER: And now? ASSISTANT:"),
        ("mistral_instruct", "[INST] How are {you}? [/INST] Fine. </s>[INST] And now? [/INST]"),
        (
            "chatml_direct",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nHow are {you}?<|im_end|>"
            "<|im_start|>assistant\nFine.<|im_end|><|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n",
        ),
        ("plain", "How are {you}?\nFine.And now?\n"),
    ],
)
def test_each_style(name: str, expected: str) -> None:
    assert TEMPLATES[name].prompt(TALK) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava_v0", "Be brief.###Human: How are {you}?###Assistant:"),
        ("v1", "Be brief. USER: How are {you}? ASSISTANT:"),
        ("llava_llama_2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow are {you}? [/INST]"),
        (
            "mpt",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHow are {you}?<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_a_system_message_replaces_the_templates(name: str, expected: str) -> None:
    assert TEMPLATES[name].prompt([SYSTEM, TALK[0]]) == expected


def test_image_tags_are_turns_of_their_own() -> None:
    prompt = TEMPLATES["v1_mmtag"].prompt(WITH_IMAGE[:1])
    assert prompt.endswith(" USER: <Image><image></Image> ASSISTANT: Received.</s>USER: What is this? ASSISTANT:")


@pytest.mark.parametrize("messages", [[], [SYSTEM], TALK[:2], TALK[1:], [TALK[0], TALK[0]], [TALK[0], SYSTEM, TALK[2]]])
def test_who_speaks_when(messages: list[Message]) -> None:
    with pytest.raises(ValueError, match="in turn"):
        TEMPLATES["llava_v1"].prompt(messages)


@pytest.mark.parametrize(
    ("name", "stop"), [("llava_v0", "###"), ("llava_v1", "</s>"), ("mistral_instruct", "</s>"), ("mpt", "<|im_end|>")]
)
def test_what_ends_an_answer(name: str, stop: str) -> None:
    assert TEMPLATES[name].stop == stop


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("llava-v1.5-7b", "llava_v1"),
        ("LLaVA-v1.6-34B", "chatml_direct"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-llama-2-13b-chat-lightning", "llava_llama_2"),
        ("Llava-MPT-7B-preview", "mpt"),
        ("nous-hermes-mixtral-llava", "chatml_direct"),
        ("llava-v1-mmtag", "v1_mmtag"),
        ("LLaVA-7B-v0-mmtag", "v0_mmtag"),
        ("something", "llava_v0"),
    ],
)
def test_the_rule_by_name(model: str, template: str) -> None:
    assert template_for(model) == template


def llavas_prompt(name: str, messages: list[dict[str, str]]) -> str:
    from llava.conversation import conv_templates

    conv: Any = conv_templates[name].copy()
    conv.messages = [list(message) for message in conv.messages]
    for message in messages:
        text: Any = message["content"]
        if "<image>" in text:
            text = (text, None, "Default")
        conv.append_message(conv.roles[0 if message["role"] == "user" else 1], text)
    conv.append_message(conv.roles[1], None)
    return str(conv.get_prompt())


@needs_llava
def test_the_names_are_llavas() -> None:
    from llava.conversation import conv_templates

    assert TEMPLATES.keys() == conv_templates.keys()


@needs_llava
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [TALK[:1], TALK, WITH_IMAGE[:1], WITH_IMAGE], ids=["one", "talk", "image", "both"])
def test_every_prompt_is_llavas(name: str, messages: list[dict[str, str]]) -> None:
    from llava.conversation import conv_templates

    if conv_templates[name].sep2 is None and TEMPLATES[name].style == "PLAIN" and len(messages) > 1:
        pytest.skip("LLaVA adds None to a text there")
    if TEMPLATES[name].examples and "<image>" in messages[0]["content"]:
        pytest.skip("LLaVA looks for the image in its example")
    assert TEMPLATES[name].prompt(messages) == llavas_prompt(name, messages)


@needs_llava
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_stop_is_llavas(name: str) -> None:
    from llava.conversation import SeparatorStyle, conv_templates

    conv: Any = conv_templates[name]
    theirs = conv.sep if conv.sep_style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT) else conv.sep2
    assert TEMPLATES[name].stop == (theirs or "")


@needs_fastchat
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [TALK[:1], TALK], ids=["one", "talk"])
def test_fastchat_joins_the_same_prompt(name: str, messages: list[dict[str, str]]) -> None:
    from fastchat.conversation import Conversation

    conv: Any = Conversation(**TEMPLATES[name].as_fastchat(name))
    for message in messages:
        conv.append_message(conv.roles[0 if message["role"] == "user" else 1], message["content"])
    conv.append_message(conv.roles[1], None)
    assert conv.get_prompt() == TEMPLATES[name].prompt(messages)
