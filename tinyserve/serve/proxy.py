"""Passes a worker's stream on to the client that asked the controller for it.

Bytes go through unread: only whole records are passed on, so that a record of our own can follow when a worker breaks
off. Until the first record has left, another worker may take over; after it, never. The client's leaving closes the
connection to the worker at once, which is how the worker learns of it. Which worker is taken is decided elsewhere.
"""

import asyncio
import errno
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinyserve.serve.body import read_reply
from tinyserve.serve.registry import Registry, Worker
from tinyserve.serve.wire import MAX_RECORD_BYTES, SEPARATOR, ErrorCode, error_record

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # the same thing, which aiohttp brings along there

logger = logging.getLogger(__name__)

OUT_OF_SOCKETS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)
MAX_DROPS = 2  # workers that may drop one request: it could be the request that kills them, so not the whole fleet
MAX_REFUSAL_BYTES = 64 << 10  # of a worker's 4xx reply
HOPS_HEADER = "tinyserve-hops"  # controllers may stand behind controllers; the count ends a ring of them


@dataclass(frozen=True)
class ProxyTimeouts:
    """In seconds."""

    connect: float = 5.0
    first_record: float = 600.0  # the request may wait in the worker's queue, and a long prompt takes its time
    next_record: float = 120.0  # between two pieces of one stream


class Lost(Exception):
    """The worker failed this request.

    `worker_is_gone`: nothing listens there. `may_retry`: no part of an answer was passed on, and trying another worker
    can do no harm. `is_ours`: this controller failed, not the worker.
    """

    def __init__(
        self, message: str, worker_is_gone: bool = False, may_retry: bool = False, is_ours: bool = False
    ) -> None:
        super().__init__(message)
        self.worker_is_gone = worker_is_gone
        self.may_retry = may_retry
        self.is_ours = is_ours


@dataclass(frozen=True)
class ProxyRequest:
    """One generation request as it is passed on."""

    model: str
    body: bytes
    hops: int


class StreamProxy:
    """Everything the streams of one controller share. Build it inside the event loop, `close` it there."""

    def __init__(
        self,
        registry: Registry,
        choose: Callable[[str, Collection[str]], Worker | None],
        suspect: Callable[[Worker], None],
        timeouts: ProxyTimeouts,
    ) -> None:
        """
        Args:
            choose: the worker for a model, leaving out the names given; None when there is none.
            suspect: called when a worker failed, to find out whether it lives.
        """
        self.registry = registry
        self.choose = choose
        self.suspect = suspect
        self.timeouts = timeouts
        # No keep-alive: a kept connection that the worker has just closed looks like a dead worker.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect),
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self.session.close()

    def respond(self, request: ProxyRequest) -> Response:
        return _ProxyResponse(self, request)


class _ProxyResponse(Response):
    """The ASGI reply to one request: written as the worker writes, given up when the client leaves."""

    def __init__(self, proxy: StreamProxy, request: ProxyRequest) -> None:
        super().__init__()
        self._proxy = proxy
        self._request = request
        self._started = False  # the reply's headers are sent
        self._passed_on = False  # so is a part of the answer
        self._send: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        try:
            await self._unless_client_leaves(receive)
        except asyncio.CancelledError:  # the server ends before the stream did
            await self._end(ErrorCode.WORKER_LOST, "the controller is shutting down")
            raise

    async def _unless_client_leaves(self, receive: Receive) -> None:
        relay = asyncio.ensure_future(self._relay())
        departure = asyncio.ensure_future(_client_leaves(receive))
        try:
            await asyncio.wait((relay, departure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            departure.cancel()
            if not relay.done():
                relay.cancel()
            await asyncio.gather(relay, departure, return_exceptions=True)
        if not relay.cancelled() and (error := relay.exception()) is not None:
            raise error

    async def _relay(self) -> None:
        """Tries workers until one serves the request; ends in a record that says why none did."""
        proxy, request = self._proxy, self._request
        tried: list[str] = []
        drops = 0
        failure: Lost | None = None
        while (worker := proxy.choose(request.model, tried)) is not None:
            tried.append(worker.name)
            try:
                with proxy.registry.stream_through(worker):
                    return await self._try(worker)
            except Lost as lost:
                failure = lost
                logger.warning("request for %s: %s", request.model, lost)
                if lost.is_ours:
                    break
                if lost.worker_is_gone:
                    proxy.registry.suspend(worker, str(lost))
                else:
                    drops += 1
                proxy.suspect(worker)
                if not lost.may_retry or drops == MAX_DROPS:
                    break
        if failure is None:
            return await self._end(ErrorCode.NO_WORKER, no_worker_message(proxy.registry, request.model))
        return await self._end(ErrorCode.WORKER_LOST, str(failure))

    async def _try(self, worker: Worker) -> None:
        """One attempt at one worker. Raises Lost unless the reply was passed on whole."""
        name, request, timeouts = worker.name, self._request, self._proxy.timeouts
        try:
            async with timeout(timeouts.first_record):
                upstream = await self._proxy.session.post(
                    name + "/worker_generate_stream",
                    data=request.body,
                    headers={"Content-Type": "application/json", HOPS_HEADER: str(request.hops + 1)},
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:  # the latter: while connecting
            raise _unreachable(name, error) from None
        except asyncio.TimeoutError:
            raise Lost(f"worker {name} gave no answer within {timeouts.first_record:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(f"worker {name} dropped the request: {_text(error)}", may_retry=True) from None
        try:
            if upstream.status == 200:
                await self._pass_on(name, upstream)
            elif 400 <= upstream.status < 500 and not self._started:
                await self._pass_refusal(upstream)
            else:
                raise Lost(f"worker {name} answered with HTTP status {upstream.status}", may_retry=True)
        finally:
            upstream.close()  # also when the client has left: the worker sees it and stops

    async def _pass_on(self, name: str, upstream: aiohttp.ClientResponse) -> None:
        """Writes whole records as they come."""
        await self._start()
        rest = b""  # the beginning of a record whose end has not come yet
        async for data in self._pieces(name, upstream):
            end = data.rfind(SEPARATOR) + 1
            if end == 0:
                rest += data
                if len(rest) > MAX_RECORD_BYTES:
                    raise Lost(f"worker {name} sent a record of more than {MAX_RECORD_BYTES} bytes")
                continue
            whole = rest + data[:end] if rest or end < len(data) else data
            rest = data[end:]
            self._passed_on = True
            await self._send({"type": "http.response.body", "body": whole, "more_body": True})
        if rest or not self._passed_on:
            raise Lost(f"worker {name} ended its stream {'inside a record' if rest else 'without any record'}")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self, name: str, upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The worker's bytes as they arrive. Raises Lost when it breaks off or is silent too long."""
        content, timeouts = upstream.content, self._proxy.timeouts
        limit = timeouts.first_record
        while True:
            try:
                async with timeout(limit):
                    data = await content.readany()
            except asyncio.TimeoutError:
                raise Lost(f"worker {name} sent nothing for {limit:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                how = "in the middle of the answer" if self._passed_on else "before its answer"
                raise Lost(f"worker {name} broke off {how}: {_text(error)}", may_retry=not self._passed_on) from None
            if not data:
                return
            limit = timeouts.next_record
            yield data

    async def _pass_refusal(self, upstream: aiohttp.ClientResponse) -> None:
        """The worker refused the request: the client gets the status and the JSON that say why."""
        body = await read_reply(upstream, MAX_REFUSAL_BYTES)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"application/octet-stream"), (b"cache-control", b"no-store")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _end(self, code: ErrorCode, message: str) -> None:
        """The last record, which says what went wrong."""
        await self._start()
        await self._send({"type": "http.response.body", "body": error_record(code, message), "more_body": False})


def no_worker_message(registry: Registry, model: str) -> str:
    available = registry.model_names()
    return f"no worker serves the model {model!r}; available: {', '.join(available) if available else 'none'}"


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _unreachable(name: str, error: aiohttp.ClientError) -> Lost:
    if _error_number(error) in OUT_OF_SOCKETS:
        return Lost(f"the controller cannot open another connection: {_text(error)}", is_ours=True)
    return Lost(f"worker {name} cannot be reached: {_text(error)}", worker_is_gone=True, may_retry=True)


def _error_number(error: Exception) -> int:
    """The system's, 0 when it has none: the failed look-up of a name counts in another way, below 0."""
    return max(0, error.os_error.errno or 0) if isinstance(error, aiohttp.ClientConnectorError) else 0


def _text(error: Exception) -> str:
    """What happened, in the system's words where aiohttp has its own."""
    if _error_number(error):
        return os.strerror(_error_number(error))
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    return str(error) or type(error).__name__
