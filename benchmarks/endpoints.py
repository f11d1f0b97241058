"""How to ask a server for a completion and to read its stream: null-byte records, or OpenAI's server-sent events.

An endpoint turns bytes into counts of tokens; when they arrived is load.py's business.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol


class StreamError(RuntimeError):
    """The server answered with an error in its stream."""


@dataclass(frozen=True)
class Event:
    """One piece of a stream."""

    has_text: bool
    completion_tokens: int | None = None  # so far, where the server says so
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    timing: dict[str, float] | None = None


class Endpoint(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def separator(self) -> bytes: ...

    def body(self, prompt: str, max_new_tokens: int) -> dict[str, Any]: ...

    def parse(self, part: bytes) -> Event | None:
        """One part between separators; None when it says nothing. Raises StreamError."""
        ...


@dataclass(frozen=True)
class NullByteRecords:
    """`/worker_generate_stream` of a worker or a controller."""

    model: str
    path: str = "/worker_generate_stream"
    separator: bytes = b"\0"

    def body(self, prompt: str, max_new_tokens: int) -> dict[str, Any]:
        settings = {"temperature": 0, "ignore_eos": True, "stream_format": "delta", "max_new_tokens": max_new_tokens}
        return {"model": self.model, "prompt": prompt, **settings}

    def parse(self, part: bytes) -> Event | None:
        if not part:
            return None
        record = json.loads(part)
        if record["error_code"]:
            raise StreamError(f"error {record['error_code']}: {record['text']}")
        return replace(_event(True, record["usage"]), timing=record.get("timing"))


@dataclass(frozen=True)
class ServerSentEvents:
    """`/v1/completions` of an OpenAI-style server."""

    model: str
    path: str = "/v1/completions"
    separator: bytes = b"\n\n"

    def body(self, prompt: str, max_new_tokens: int) -> dict[str, Any]:
        settings = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "prompt": prompt, "max_tokens": max_new_tokens, **settings}

    def parse(self, part: bytes) -> Event | None:
        lines = [line.removeprefix(b"data:").strip() for line in part.splitlines() if line.startswith(b"data:")]
        if not lines or lines[0] == b"[DONE]":
            return None
        record = json.loads(b"".join(lines))
        if "error" in record:
            raise StreamError(str(record["error"]))
        return _event(any(choice.get("text") for choice in record.get("choices", ())), record.get("usage"))


def _event(has_text: bool, usage: Mapping[str, Any] | None) -> Event:
    if not usage:
        return Event(has_text)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Event(has_text, usage["completion_tokens"], usage["prompt_tokens"], cached)


ENDPOINTS: dict[str, Callable[[str], Endpoint]] = {"tinyserve": NullByteRecords, "openai": ServerSentEvents}
