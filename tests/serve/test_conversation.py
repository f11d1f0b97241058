"""Chat templates as FastChat conversations: FastChat's way of joining the pieces gives what the template gives."""

import string
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from tinyserve.serve.conversation import Message, Render, conversation

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe {kind}.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = (
    "<bos>{% for m in messages %}{% if m.role == 'system' %}{{ no_system_role() }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

TALK = [
    {"role": "user", "content": "How much is 2 {x} 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
]
SYSTEM = {"role": "system", "content": "Answer in rhymes."}


def renderer(template: str) -> Render:
    compiled = jinja2.Environment(keep_trailing_newline=True).from_string(template)
    return lambda messages: compiled.render(messages=messages)


def fastchat_prompt(conv: dict[str, Any], messages: list[Message]) -> str:
    """SeparatorStyle.NO_COLON_TWO of fastchat/conversation.py, the answer's message being None."""
    assert conv["sep_style"] == 5
    system = conv["system_message"]
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    text: str = conv["system_template"].format(system_message=system)
    for index, message in enumerate(messages):
        role = conv["roles"][0] if message["role"] == "user" else conv["roles"][1]
        text += role + message["content"] + (conv["sep"], conv["sep2"])[index % 2]
    return text + str(conv["roles"][1])


@pytest.mark.parametrize("messages", [TALK[:1], TALK, [SYSTEM, *TALK]], ids=["question", "talk", "with system"])
def test_the_real_models_template(smollm2: Path, messages: list[Message]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def render(chat: list[Message]) -> str:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    conv = conversation("smollm2", render)
    assert fastchat_prompt(conv, messages) == render(messages)
    assert conv["roles"] == ["<|im_start|>user\n", "<|im_start|>assistant\n"]
    assert conv["system_message"].startswith("You are a helpful AI assistant")


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
@pytest.mark.parametrize("messages", [[SYSTEM, TALK[0]], [SYSTEM, *TALK]])
def test_templates_with_a_system_role(template: str, messages: list[Message]) -> None:
    render = renderer(template)
    assert fastchat_prompt(conversation("m", render), messages) == render(messages)


@pytest.mark.parametrize("template", [CHATML, GEMMA], ids=["chatml", "gemma"])
def test_without_a_system_message(template: str) -> None:
    render = renderer(template)
    assert fastchat_prompt(conversation("m", render), TALK) == render(TALK)


def test_the_turns_end_is_a_stop_string() -> None:
    assert conversation("m", renderer(LLAMA3))["stop_str"] == "<|eot_id|>"


@pytest.mark.parametrize("template", [NUMBERED, "{{ no_template() }}", "always the same"])
def test_what_cannot_be_cut_gets_a_plain_conversation(template: str) -> None:
    conv = conversation("m", renderer(template))
    assert fastchat_prompt(conv, TALK[:1]) == "USER: How much is 2 {x} 2?\nASSISTANT:"


def test_every_field_that_fastchat_reads_is_there() -> None:
    conv = conversation("m", renderer(CHATML))
    read = {"name", "system_template", "system_message", "roles", "messages", "offset", "sep_style", "sep", "sep2"}
    assert conv.keys() == read | {"stop_str", "stop_token_ids"}
    assert [field for _, field, _, _ in string.Formatter().parse(conv["system_template"]) if field] == [
        "system_message"
    ]
