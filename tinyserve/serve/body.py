"""Bodies of requests and replies, read within a size limit, and the body of an error reply.

Knows nothing of what a JSON object should contain.
"""

import json
from typing import Any

import aiohttp
import msgspec
from starlette.requests import Request

from tinyserve.serve.wire import ErrorCode


class BadBody(ValueError):
    """The body cannot be used. `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        BadBody: it is longer than `max_bytes`; reading stops there.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise BadBody(413, f"the request body is longer than {max_bytes} bytes (--max-body-bytes)")
        parts.append(part)
    return b"".join(parts)


async def read_reply(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body of another server's reply, cut off at `max_bytes`."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        BadBody: it is not JSON, or JSON but no object.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are not UTF-8
        raise BadBody(400, f"the request body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadBody(422, f"the request body must be a JSON object, got {type(data).__name__}")
    return data


def parse_member(body: bytes, key: str) -> dict[str, Any]:
    """The JSON object in `body` reduced to one member, without decoding the others: they may be megabytes of images.

    Raises:
        BadBody: as `parse_object`.
    """
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return {key: msgspec.json.decode(members[key])} if key in members else {}
    except msgspec.ValidationError:
        raise BadBody(422, "the request body must be a JSON object") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadBody(400, f"the request body is not JSON: {error}") from None


def error_body(message: str, field: str | None = None, code: int = ErrorCode.VALIDATION) -> dict[str, Any]:
    """What a 4xx response says: `detail` for people, `field` and `error_code` for programs."""
    return {"detail": message, "field": field, "error_code": int(code)}
