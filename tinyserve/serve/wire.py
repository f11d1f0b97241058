r"""The stream format between workers, controller and clients, and the error codes that travel in it.

A stream is a raw HTTP body of records. A record is one JSON object in ASCII followed by one zero byte; JSON escapes
control characters, so a zero byte can only be a separator. This module knows no HTTP and no engine.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from enum import IntEnum
from json.encoder import encode_basestring_ascii as _quote  # the C function behind json.dumps for one string
from typing import Any

from tinyserve.engine.request import Timing

SEPARATOR = b"\0"
_INDEX = b'"index": %d, '  # always a record's first member
_INDEX_FOUND = re.compile(rb'\{"index": (\d+), ')
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

    def __init__(self, prefix: str = "", cumulative: bool = True, index: int | None = None) -> None:
        """
        Args:
            prefix: what every cumulative record starts with: the prompt, or nothing.
            cumulative: False sends the new text alone in each record, and the prefix never.
            index: of the sample that the records belong to, where a stream holds several.
        """
        self._head = b"" if index is None else _INDEX % index
        self._cumulative = cumulative
        self._escaped = bytearray(_escape(prefix)) if cumulative else bytearray()

    def encode(
        self,
        new_text: str,
        prompt_tokens: int,
        completion_tokens: int,
        finish_reason: str | None,
        cached_tokens: int = 0,
        logprobs: bytes | None = None,
        timing: Timing | None = None,
    ) -> bytes:
        """The record that tells about `new_text`; token counts are totals of the request so far.

        Args:
            cached_tokens: of the prompt, which were not computed again; OpenAI's place and name for it.
            logprobs: a JSON object, see logprobs_encoder.py.
            timing: where the time until the first token went, told in the last record of a request with images.
        """
        text = _escape(new_text)
        if self._cumulative:
            self._escaped += text
            text = bytes(self._escaped)
        total = prompt_tokens + completion_tokens
        tail = b"" if logprobs is None else b', "logprobs": ' + logprobs
        if timing is not None:
            tail += b', "timing": ' + json.dumps(asdict(timing)).encode("ascii")
        reason = b"null" if finish_reason is None else _quote(finish_reason).encode("ascii")
        details = b', "prompt_tokens_details": {"cached_tokens": %d}' % cached_tokens if cached_tokens else b""
        return (
            b'{%b"text": "%b", "error_code": 0, "usage": {"prompt_tokens": %d, "completion_tokens": %d, '
            b'"total_tokens": %d%b}, "finish_reason": %b%b}\0'
            % (self._head, text, prompt_tokens, completion_tokens, total, details, reason, tail)
        )


class LastRecords:
    """What is left of a stream when it is over: its last record, or the last one of each sample."""

    def __init__(self) -> None:
        self._last: dict[int, bytes] = {}  # index of a sample -> its record

    def add(self, record: bytes) -> None:
        index = _INDEX_FOUND.match(record)
        key = 0 if index is None else int(index[1])
        self._last.pop(key, None)  # so that the newest is always the last one
        self._last[key] = record

    def joined(self) -> bytes:
        """One JSON object. Of several samples it holds a list where a record holds text, finish_reason and logprobs."""
        *_, newest = self._last.values()
        record = _decode(newest.removesuffix(SEPARATOR))
        if "index" not in record:  # a sample alone, or the error that has ended them all
            return newest.removesuffix(SEPARATOR)
        each = [_decode(self._last[index].removesuffix(SEPARATOR)) for index in sorted(self._last)]
        del record["index"]
        lists = {key: [one[key] for one in each] for key in ("text", "finish_reason", "logprobs") if key in record}
        return json.dumps(record | lists).encode("ascii")


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
