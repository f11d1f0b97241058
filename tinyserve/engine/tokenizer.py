"""Text to token ids and back, for one model folder.

It decides where a beginning-of-sequence token belongs and which tokens end a text. Which text has already been sent is
detokenizer.py's business.
"""

import copy
import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

_PROBE = "\x02text\x03"
PARTIAL = "\ufffd"  # what decoding gives for bytes that make no character


class Tokenizer:
    """Safe to use from several threads at once.

    Raises:
        ValueError: the folder holds no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._hf: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # every tokenizer class has its own exceptions
            raise ValueError(f"no usable tokenizer in {folder}: {error}") from error
        # The Rust tokenizer keeps no state between calls; transformers' own wrapper does, and needs the lock.
        self._fast: Any = getattr(self._hf, "backend_tokenizer", None)
        self._lock = threading.Lock()
        self.bos_token_id: int | None = self._hf.bos_token_id
        self._adds_bos = self.bos_token_id is not None and self._hf("")["input_ids"][:1] == [self.bos_token_id]
        self.special_ids = frozenset(self._hf.all_special_ids)
        self.max_token_characters = max(map(len, self._hf.get_vocab()), default=1)  # that one token can stand for
        self._before = self._hf.encode("a", add_special_tokens=False)  # at the start of a text some lose a space
        self._text_before = self.decode(self._before)
        self._template = self._hf.chat_template or _processor_template(folder)
        self.eos_token_ids = _eos_token_ids(folder, self._hf.eos_token_id)

    def encode(self, text: str, adds_bos: bool = True) -> list[int]:
        """Ids of a prompt: special tokens in it are recognised, and BOS comes first where the model expects it.

        Args:
            adds_bos: False: `text` is no beginning.
        """
        if self._fast is not None:
            ids = self._fast.encode(text, add_special_tokens=False).ids
        else:
            with self._lock:
                ids = self._hf.encode(text, add_special_tokens=False)
        if adds_bos and self._adds_bos and ids[:1] != [self.bos_token_id]:
            ids = [self.bos_token_id, *ids]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens included; incomplete characters become U+FFFD."""
        if self._fast is not None:
            return self._fast.decode(token_ids, skip_special_tokens=False)
        with self._lock:
            return self._hf.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def to_json(self) -> str:
        """The tokenizer as the Rust library writes it, without padding and truncation.

        Raises:
            ValueError: it is not one of that library.
        """
        if self._fast is None:
            raise ValueError("the model's tokenizer is not one of the Rust library, which structured output needs")
        fast = copy.copy(self._fast)
        fast.no_padding()
        fast.no_truncation()
        return fast.to_str()

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text; the vocabulary's own spelling where that is no whole character."""
        text = self.decode([*self._before, token_id])[len(self._text_before) :]
        return text if PARTIAL not in text else self._hf.convert_ids_to_tokens(token_id)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._template)

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
        """The prompt for a conversation, ending where the assistant's answer begins.

        Raises:
            ValueError: the model has no chat template, or the template refuses the messages.
        """
        if not self.has_chat_template:
            raise ValueError(f"the tokenizer in {self._hf.name_or_path} has no chat template")
        try:
            return self._render(messages, self._template_takes_parts)
        except Exception as error:  # jinja2's, and whatever a template raises by itself
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error

    @functools.cached_property
    def _template_takes_parts(self) -> bool:
        """Templates of image models may want a list of parts as content, and leave out what is a string."""
        try:
            return _PROBE not in self._render([{"role": "user", "content": _PROBE}], False)
        except Exception:  # it may refuse a string as well as anything else
            return True

    def _render(self, messages: list[dict[str, str]], in_parts: bool) -> str:
        content: list[dict[str, Any]] = [
            {**message, "content": [{"type": "text", "text": message["content"]}] if in_parts else message["content"]}
            for message in messages
        ]
        with self._lock:
            return self._hf.apply_chat_template(
                content, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )


def _processor_template(folder: Path) -> str | None:
    """The chat template of older image models, which stands in a file that tokenizers do not read."""
    path = folder / "chat_template.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stored.get("chat_template")


def _eos_token_ids(folder: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """Every token that ends a text: generation_config.json's, else config.json's, and the tokenizer's own."""
    ids: set[int] = set() if tokenizer_eos is None else {tokenizer_eos}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if value is not None:
            return frozenset(ids | set(value if isinstance(value, list) else [value]))
    return frozenset(ids)
