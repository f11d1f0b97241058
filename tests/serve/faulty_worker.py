"""A worker process that fails in one chosen way: `python -m tests.serve.faulty_worker --port N --fault die`.

Speaks just enough HTTP on plain sockets to be able to break it. It answers /worker_get_status properly unless the fault
is `hang`, and registers nowhere: the test does that.
"""

import argparse
import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable

from tinyserve.serve.wire import encode

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def record(text: str) -> bytes:
    return encode({"text": text, "error_code": 0})


def reply(status: str, body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def die(writer: asyncio.StreamWriter) -> None:
    """Two records and the beginning of a third, then the process is gone."""
    writer.write(CHUNKED + chunk(record("a")) + chunk(record("a b")) + chunk(record("a b c")[:9]))
    await writer.drain()
    os._exit(1)


async def die_first(writer: asyncio.StreamWriter) -> None:
    """The request itself kills the process."""
    os._exit(1)


async def headers_only(writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    await writer.drain()
    writer.close()


async def half_record(writer: asyncio.StreamWriter) -> None:
    """An orderly end inside a record."""
    writer.write(CHUNKED + chunk(record("a")) + chunk(record("a b")[:-1]) + chunk(b""))


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED + chunk(record("a")))
    await writer.drain()
    await asyncio.sleep(3600)


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def refuse(writer: asyncio.StreamWriter) -> None:
    writer.write(reply("422 Unprocessable Entity", json.dumps({"detail": "temperature must be a number"}).encode()))


async def error_500(writer: asyncio.StreamWriter) -> None:
    writer.write(reply("500 Internal Server Error", b"oops", "text/plain"))


async def redirect(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/secret\r\nContent-Length: 0\r\n\r\n")


async def web_page(writer: asyncio.StreamWriter) -> None:
    """Something that is no worker at all, such as an internal site that somebody registered."""
    writer.write(reply("200 OK", b"<html>internal secret</html>", "text/html"))


async def split(writer: asyncio.StreamWriter) -> None:
    """No fault: correct records, one byte at a time."""
    writer.write(CHUNKED)
    for byte in record("a") + record("a b"):
        writer.write(chunk(bytes([byte])))
        await writer.drain()
        await asyncio.sleep(0.001)
    writer.write(chunk(b""))


FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        die,
        die_first,
        headers_only,
        half_record,
        stall,
        hang,
        refuse,
        error_500,
        redirect,
        web_page,
        split,
    )
}


async def serve(port: int, fault: str, model: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        if head.startswith(b"GET /health"):
            writer.write(reply("200 OK", b"{}"))
        elif head.startswith(b"POST /worker_get_status") and fault != "hang":
            writer.write(reply("200 OK", json.dumps({"model_names": [model], "speed": 1, "queue_length": 0}).encode()))
        else:
            await FAULTS[fault](writer)
        if not writer.is_closing():
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fault", choices=FAULTS, required=True)
    parser.add_argument("--model", default="timed")
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.fault, args.model))
