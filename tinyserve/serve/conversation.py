"""A tokenizer's chat template as a FastChat conversation, for clients that build prompts themselves.

FastChat's servers ask a worker for the pieces of a conversation and join them. The pieces are found by rendering the
template with marked texts and cutting at the marks. Of FastChat's separator styles only NO_COLON_TWO is used: it can
express any template whose pieces do not depend on the texts, and its number is the same in every FastChat release
(CHATML's is not). Templates that cannot be cut so get a plain USER/ASSISTANT conversation. Knows no tokenizer.
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

NO_COLON_TWO = 5  # fastchat.conversation.SeparatorStyle

Message = dict[str, str]
Render = Callable[[list[Message]], str]

SYSTEM, FIRST, ANSWER, SECOND = "\x02system\x03", "\x02first\x03", "\x02answer\x03", "\x02second\x03"


def conversation(name: str, render: Render) -> dict[str, Any]:
    """The fields of `fastchat.conversation.Conversation`.

    Args:
        name: what the conversation calls itself.
        render: messages with `role` and `content` -> prompt that ends where the assistant's answer begins.
    """
    try:
        pieces = _cut(render)
    except Exception as error:  # a template is a program: anything may go wrong in it, and the worker goes on
        log.warning("the chat template cannot be offered to FastChat clients, they get a plain one: %s", error)
        pieces = _plain()
    return {
        "name": name,
        "messages": [],
        "offset": 0,
        "sep_style": NO_COLON_TWO,
        "stop_token_ids": None,  # the engine stops at the model's own end-of-turn tokens
        **pieces,
    }


def prompt(conv: dict[str, Any], messages: list[Message]) -> str:
    """What FastChat builds from a conversation of this module; `messages` may begin with a system message."""
    system = conv["system_message"]
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    text = str(conv["system_template"]).format(system_message=system)
    separators = (conv["sep"], conv["sep2"])
    for index, message in enumerate(messages):
        text += conv["roles"][0 if message["role"] == "user" else 1] + message["content"] + separators[index % 2]
    return text + str(conv["roles"][1])


def _cut(render: Render) -> dict[str, Any]:
    user, answer = {"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWER}
    turns = [user, answer, {"role": "user", "content": SECOND}]
    system: list[Message] = [{"role": "system", "content": SYSTEM}]
    try:
        full = render(system + turns)
        head, after_system = _split(full, SYSTEM)
    except Exception:  # no system role, as in Gemma's template: a system message then stands before the first turn
        system, full = [], render(turns)
        head, after_system = "", full
    to_first, rest = _split(after_system, FIRST)
    to_answer, rest = _split(rest, ANSWER)
    to_second, _ = _split(rest, SECOND)
    end = _turn_end(_shared_start(to_answer, to_second), head or to_first)
    user_role = to_second.removeprefix(end)
    if not to_first.endswith(user_role):
        raise ValueError("its first turn differs from the others")
    system_end = to_first.removesuffix(user_role)
    template = (head, system_end) if system else (system_end, "")
    conv = {
        "system_template": _literal(template[0]) + "{system_message}" + _literal(template[1]),
        "system_message": _default_system(_split(render([user]), FIRST)[0], template[0], template[1] + user_role),
        "roles": [user_role, to_answer.removeprefix(end)],
        "sep": end,
        "sep2": end,
        "stop_str": end.strip() or None,
    }
    if prompt(conv, system + turns) != full:
        raise ValueError("its pieces depend on the texts")
    return conv


def _turn_end(shared: str, head: str) -> str:
    """What closes a turn: of the text that follows every turn, the part before what opens the next (seen in `head`)."""
    for start in range(1, len(shared)):
        whole_mark = shared[start] in "<[" or shared[start - 1].isspace()
        if whole_mark and shared[start:] in head:
            return shared[:start]
    return shared


def _shared_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _default_system(lead: str, before: str, after: str) -> str:
    """The system message that the template puts in by itself; `lead` is what it writes before a first user text."""
    if len(lead) >= len(before) + len(after) and lead.startswith(before) and lead.endswith(after):
        return lead[len(before) : len(lead) - len(after)]
    return ""


def _plain() -> dict[str, Any]:
    return {
        "system_template": "{system_message}",
        "system_message": "",
        "roles": ["USER: ", "ASSISTANT:"],
        "sep": "\n",
        "sep2": "\n",
        "stop_str": "USER:",
    }


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found or mark in after:
        raise ValueError("it repeats, changes or leaves out a text")
    return before, after


def _literal(text: str) -> str:
    """`text` for use in a format string."""
    return text.replace("{", "{{").replace("}", "}}")
