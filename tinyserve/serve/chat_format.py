"""How a model wants its conversations: by the template of its tokenizer, or else by one of LLaVA's.

It decides which one, once, when the model is loaded, and says so where nothing but the model's name speaks for it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tinyserve.serve.conversation import conversation
from tinyserve.serve.llava_templates import TEMPLATES, template_for

log = logging.getLogger(__name__)

Message = dict[str, str]


class ChatFormat:
    """
    Args:
        model_name: of the model.
        render: what applies the tokenizer's own template; None: it has none.
        conv_mode: the name of one of LLaVA's templates, which then is the one; None: it is found.

    Raises:
        ValueError: there is no such template.
    """

    def __init__(
        self, model_name: str, render: Callable[[list[Message]], str] | None, conv_mode: str | None = None
    ) -> None:
        if conv_mode is not None and conv_mode not in TEMPLATES:
            raise ValueError(f"--conv-mode must be one of {', '.join(TEMPLATES)}, got {conv_mode!r}")
        self._model_name = model_name
        self._render = render if conv_mode is None else None
        if conv_mode is None and render is None:
            conv_mode = template_for(model_name)
            log.warning(
                "the model has no chat template: conversations go by LLaVA's %s, for the name %s; --conv-mode chooses",
                conv_mode,
                model_name,
            )
        self._template = None if conv_mode is None else TEMPLATES[conv_mode]
        self._name = model_name if conv_mode is None else conv_mode

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt that ends where the answer begins. Raises whatever a template raises about the messages."""
        copies = [dict(message) for message in messages]
        if self._template is not None:
            return self._template.prompt(copies)
        assert self._render is not None
        return self._render(copies)

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends an answer besides the model's own end-of-text tokens."""
        return () if self._template is None or not self._template.stop else (self._template.stop,)

    def as_fastchat(self) -> dict[str, Any]:
        """The fields of a FastChat conversation."""
        if self._template is not None:
            return self._template.as_fastchat(self._name)
        assert self._render is not None
        return conversation(self._model_name, self._render)
