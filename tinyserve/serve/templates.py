"""LLaVA's conversation templates: how turns become one prompt, for models whose tokenizer has no chat template.

The texts, the five styles and the rule that chooses by a model's name are those of llava/conversation.py and
llava/serve/cli.py, as data. A checkpoint says nothing about them, so its name is asked last: after --conv-mode and
after the tokenizer's own template. It knows no tokenizer and no images, only their marks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MARK = "<image>"

Message = Mapping[str, str]  # role: system, user or assistant; content
Turn = tuple[str, str | None]  # a role's name, and its text; None: it is to come


@dataclass(frozen=True)
class Template:
    """One of LLaVA's conversations."""

    style: str  # SINGLE, TWO, MPT, PLAIN or LLAMA_2
    roles: tuple[str, str]  # of the user and the assistant
    sep: str
    sep2: str = ""  # after an answer, where the style has two
    system: str = ""
    system_template: str = "{}"
    examples: tuple[str, ...] = ()  # turns that stand before every conversation, the user's first
    tags_images: bool = False  # <Image><image></Image> as a turn of its own, which the assistant has received

    @property
    def stop(self) -> str:
        """What ends an answer."""
        return self.sep if self.style in ("SINGLE", "MPT") else self.sep2

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that ends where the assistant's answer begins; a first system message replaces the template's own.

        Raises:
            ValueError: the messages are none, or not the user's and the assistant's in turn, the user's first and last.
        """
        system = self.system_template.format(self.system) if self.system else ""
        if messages and messages[0]["role"] == "system":
            system, messages = self.system_template.format(messages[0]["content"]), messages[1:]
        expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(messages))]
        if [message["role"] for message in messages] != expected or len(messages) % 2 == 0:
            raise ValueError("they must be the user's and the assistant's in turn, the user's first and last")
        texts = [message["content"] for message in messages]
        if self.tags_images and MARK in texts[0]:
            tags = f"<Image>{MARK}</Image>" * texts[0].count(MARK)
            texts = [tags, "Received.", texts[0].replace(MARK, "").strip(), *texts[1:]]
        return _STYLES[self.style](self, system, [*self.examples, *texts])

    def as_fastchat(self, name: str) -> dict[str, Any]:
        """The fields of `fastchat.conversation.Conversation`, whose way of joining gives the same prompts."""
        system = self.system_template.format("{system_message}")
        fields = _FASTCHAT[self.style](self, system)
        return {
            "name": name,
            "system_message": self.system,
            "roles": list(self.roles),
            "messages": [[self.roles[index % 2], text] for index, text in enumerate(self.examples)],
            "offset": len(self.examples),
            "sep": self.sep,
            "sep2": self.sep2,
            "stop_str": self.stop or None,
            "stop_token_ids": None,
            **fields,
        }


def _single(template: Template, system: str, texts: Sequence[str]) -> str:
    turns = [f"{template.roles[index % 2]}: {text}{template.sep}" for index, text in enumerate(texts)]
    return f"{system}{template.sep}{''.join(turns)}{template.roles[1]}:"


def _two(template: Template, system: str, texts: Sequence[str]) -> str:
    seps = (template.sep, template.sep2)
    turns = [f"{template.roles[index % 2]}: {text}{seps[index % 2]}" for index, text in enumerate(texts)]
    return f"{system}{template.sep}{''.join(turns)}{template.roles[1]}:"


def _mpt(template: Template, system: str, texts: Sequence[str]) -> str:
    turns = [f"{template.roles[index % 2]}{text}{template.sep}" for index, text in enumerate(texts)]
    return f"{system}{template.sep}{''.join(turns)}{template.roles[1]}"


def _plain(template: Template, system: str, texts: Sequence[str]) -> str:
    seps = (template.sep, template.sep2)
    return system + "".join(text + seps[index % 2] for index, text in enumerate(texts))


def _llama_2(template: Template, system: str, texts: Sequence[str]) -> str:
    """No separator before the first turn: the tokenizer puts the beginning of a text there."""
    first = (f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else "") + texts[0]
    turns = [
        f"{template.sep}[INST] {text} [/INST]" if index % 2 == 0 else f" {text} {template.sep2}"
        for index, text in enumerate([first, *texts[1:]])
    ]
    return "".join(turns).removeprefix(template.sep)


_STYLES: Mapping[str, Callable[[Template, str, Sequence[str]], str]] = {
    "SINGLE": _single,
    "TWO": _two,
    "MPT": _mpt,
    "PLAIN": _plain,
    "LLAMA_2": _llama_2,
}

# What differs from our fields: fastchat.conversation.SeparatorStyle has these numbers, the same in every release.
_FASTCHAT: Mapping[str, Callable[[Template, str], dict[str, Any]]] = {
    "SINGLE": lambda template, system: {"sep_style": 1, "system_template": system},  # ADD_COLON_SINGLE
    "TWO": lambda template, system: {"sep_style": 2, "system_template": system},  # ADD_COLON_TWO
    "MPT": lambda template, system: {"sep_style": 4, "system_template": system + template.sep},  # NO_COLON_SINGLE
    "PLAIN": lambda template, system: {"sep_style": 5, "system_template": system},  # NO_COLON_TWO
    "LLAMA_2": lambda template, system: {
        "sep_style": 7,  # LLAMA2
        "system_template": f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        "roles": ["[INST]", "[/INST]"],
        "sep": " ",
        "sep2": f" {template.sep2}{template.sep}",
    },
}
