r"""The stream format between workers, controller and clients, and the error codes that travel in it.

A stream is a raw HTTP body of records. A record is one JSON object in ASCII followed by one zero byte; JSON escapes
control characters, so a zero byte can only be a separator. This module knows no HTTP and no engine.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from json.encoder import encode_basestring_ascii as _quote  # the C function behind json.dumps for one string
from typing import Any

SEPARATOR = b"\0"
MAX_RECORD_BYTES = 64 << 20  # of one record a decoder accepts: a peer that never sends a separator must not fill memory


class ErrorCode(IntEnum):
    """1 to 3 are LLaVA's, the five digit ones FastChat's (`fastchat.constants.ErrorCode`)."""

    OK = 0
    WORKER_FAILED = 1  # the worker's generation failed
    NO_WORKER = 2  # the controller has no worker for the model
    WORKER_LOST = 3  # the controller could not reach the worker, or its stream broke off
    VALIDATION = 40001
    AUTHENTICATION = 40101
    INVALID_MODEL = 40301
    OUT_OF_RANGE = 40302
    CONTEXT_OVERFLOW = 40303
    OVERLOADED = 42903
    INTERNAL = 50001
    OUT_OF_MEMORY = 50002
    WORKER_TIMEOUT = 50006


Record = dict[str, Any]


def encode(record: Mapping[str, Any]) -> bytes:
    """One record as it goes over the wire: JSON in ASCII and the separator."""
    return json.dumps(record, ensure_ascii=True).encode("ascii") + SEPARATOR


def error_record(code: int, message: str) -> bytes:
    """The record that ends a stream when something went wrong.

    Args:
        code: one of `ErrorCode`, never 0.
        message: what happened, naming the thing; clients show it in place of the answer.
    """
    if code == ErrorCode.OK:
        raise ValueError("an error record needs a code other than 0")
    return encode({"text": message, "error_code": int(code), "finish_reason": "error"})


class RecordEncoder:
    """Encodes the records of one stream, whose text only grows.

    Escaping is done once per character: the escaped text is kept and each record copies it, since cumulative records
    would otherwise escape the prompt and the whole answer again at every token.
    """

    def __init__(self, prefix: str = "", cumulative: bool = True) -> None:
        """
        Args:
            prefix: what every cumulative record starts with: the prompt, or nothing.
            cumulative: False sends the new text alone in each record, and the prefix never.
        """
        self._cumulative = cumulative
        self._escaped = bytearray(_escape(prefix)) if cumulative else bytearray()

    def encode(
        self,
        new_text: str,
        prompt_tokens: int,
        completion_tokens: int,
        finish_reason: str | None,
        cached_tokens: int = 0,
    ) -> bytes:
        """The record that tells about `new_text`; token counts are totals of the request so far.

        Args:
            cached_tokens: of the prompt, which were not computed again; OpenAI's place and name for it.
        """
        text = _escape(new_text)
        if self._cumulative:
            self._escaped += text
            text = bytes(self._escaped)
        reason = b"null" if finish_reason is None else _quote(finish_reason).encode("ascii")
        details = b', "prompt_tokens_details": {"cached_tokens": %d}' % cached_tokens if cached_tokens else b""
        return (
            b'{"text": "%b", "error_code": 0, "usage": {"prompt_tokens": %d, "completion_tokens": %d, '
            b'"total_tokens": %d%b}, "finish_reason": %b}\0'
            % (text, prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details, reason)
        )


def _escape(text: str) -> bytes:
    """`text` as the inside of a JSON string, without the quotes."""
    return _quote(text)[1:-1].encode("ascii")


class RecordDecoder:
    """Turns the bytes of a stream into records, wherever the network cut them."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Record]:
        """The records that `data` completes.

        Raises:
            ValueError: a record is not a JSON object, or is longer than `MAX_RECORD_BYTES`.
        """
        start = len(self._rest)
        self._rest += data
        if self._rest.find(SEPARATOR, start) < 0:
            if len(self._rest) > MAX_RECORD_BYTES:
                raise ValueError(f"a record of the stream is longer than {MAX_RECORD_BYTES} bytes")
            return []
        *complete, self._rest = self._rest.split(SEPARATOR)
        return [_decode(part) for part in complete if part]

    def finish(self) -> None:
        """To be called at the end of the stream.

        Raises:
            ValueError: the stream ended inside a record.
        """
        if self._rest:
            raise ValueError(f"the stream ended inside a record, after {bytes(self._rest[:80])!r}")


def _decode(part: bytes | bytearray) -> Record:
    try:
        record = json.loads(part)
    except ValueError as error:
        raise ValueError(f"not a JSON record: {bytes(part[:80])!r}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, got {bytes(part[:80])!r}")
    return record
