"""The HTTP routes of a model worker: LLaVA's two, FastChat's four, and health.

A stream is written record by record as soon as the engine has text, and given up as soon as the client leaves. Requests
that are wrong in themselves (no JSON, too long) get a 4xx; what is wrong inside them is told in the stream, as the
protocol has it. What a request means is decided in worker.py.
"""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tinyserve.engine.generator import RequestError
from tinyserve.serve.body import BadBody, error_body, parse_object, read_body
from tinyserve.serve.health import ProgressWatch
from tinyserve.serve.image_input import parse_images
from tinyserve.serve.wire import ErrorCode, LastRecords, error_record
from tinyserve.serve.worker import ModelWorker

MAX_BODY_BYTES = 64 << 20  # a photograph as PNG has a few megabytes, in base64 a third more
STALL_S = 120.0
WATCH_EVERY_S = 1.0


def create_app(worker: ModelWorker, max_body_bytes: int = MAX_BODY_BYTES, stall_s: float = STALL_S) -> FastAPI:
    """The application that serves `worker`, and closes it at the end.

    Args:
        max_body_bytes: a longer request body gets a 413.
        stall_s: seconds without progress after which /health says 503.
    """
    watch = ProgressWatch(stall_s, time.monotonic())
    app = FastAPI(title="tinyserve model worker", lifespan=_lifespan(worker, watch))

    async def body_of(request: Request) -> dict[str, Any]:
        return parse_object(await read_body(request, max_body_bytes))

    @app.exception_handler(BadBody)
    async def bad_body(_: Request, error: BadBody) -> Response:
        return JSONResponse(error_body(str(error)), status_code=error.status)

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        body = await read_body(request, max_body_bytes)
        return RecordStream(worker.serve(parse_object(body), len(body)))

    @app.post("/worker_generate")
    async def worker_generate(request: Request) -> Response:
        body = await read_body(request, max_body_bytes)
        return WholeAnswer(worker.serve({**parse_object(body), "stream_format": "cumulative"}, len(body)))

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return worker.get_status()

    @app.post("/count_token")
    async def count_token(request: Request) -> dict[str, Any]:
        body = await body_of(request)
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise BadBody(422, f"prompt must be a string, got {type(prompt).__name__}")
        try:
            return {"count": await worker.count_tokens(prompt, parse_images(body)), "error_code": 0}
        except RequestError as error:
            return {"count": 0, "error_code": int(error.code), "text": str(error)}

    @app.post("/model_details")
    async def model_details() -> dict[str, Any]:
        return {"context_length": worker.context_length}

    @app.post("/worker_get_conv_template")
    async def worker_get_conv_template() -> dict[str, Any]:
        return {"conv": worker.get_conv_template()}

    @app.get("/health")
    async def health() -> Response:
        try:
            stats = worker.generator.stats()
        except RuntimeError as error:
            return JSONResponse({"status": str(error), **worker.get_status()}, status_code=503)
        stalled = watch.observe(stats, time.monotonic())
        report = {
            "status": "ok" if stalled is None else f"no progress for {stalled:.0f} s",
            **worker.get_status(),
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
            "free_blocks": stats.free_blocks,
            "total_blocks": stats.total_blocks,
            "generated_tokens": stats.generated_tokens,
            "cached_tokens": stats.cached_tokens,
            "preemptions": stats.preemptions,
            "encoding": stats.num_encoding,
            "encoded_images": stats.encoded_images,
            "requests": worker.call_count,
        }
        return JSONResponse(report, status_code=200 if stalled is None else 503)

    return app


def _lifespan(worker: ModelWorker, watch: ProgressWatch) -> Callable[[FastAPI], Any]:
    async def look() -> None:
        try:
            while True:
                watch.observe(worker.generator.stats(), time.monotonic())
                await asyncio.sleep(WATCH_EVERY_S)
        except RuntimeError as error:
            # A worker that can only fail must not stay: the controller looks elsewhere, a supervisor starts a new one.
            worker.failure = str(error)
            signal.raise_signal(signal.SIGTERM)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await worker.close()

    return lifespan


class RecordStream(Response):
    """Writes each record when it is there. Starlette's own streams notice a departed client only at the next write."""

    def __init__(self, records: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._records = records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No length and no type: the body is as long as it gets, and upstream's workers do not name a type either.
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await _unless_client_leaves(receive, self._write(send))
        except asyncio.CancelledError:  # the server ends before the stream did
            with suppress(OSError):
                last = error_record(ErrorCode.INTERNAL, "the worker is shutting down")
                await send({"type": "http.response.body", "body": last, "more_body": False})
            raise

    async def _write(self, send: Send) -> None:
        async with aclosing(self._records) as records:
            async for record in records:
                await send({"type": "http.response.body", "body": record, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class WholeAnswer(Response):
    """The whole answer at once: what a stream's last records say, as a JSON body."""

    def __init__(self, records: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._records = records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            last = LastRecords()
            async with aclosing(self._records) as records:
                async for record in records:
                    last.add(record)
            await Response(last.joined(), media_type="application/json")(scope, receive, send)

        await _unless_client_leaves(receive, answer())


async def _unless_client_leaves(receive: Receive, work: Awaitable[None]) -> None:
    """Runs `work` to its end, or cancels it when the client closes the connection first."""

    async def client_leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    departure = asyncio.ensure_future(client_leaves())
    try:
        await asyncio.wait((working, departure), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, departure):
            task.cancel()
        await asyncio.gather(working, departure, return_exceptions=True)
    if not working.cancelled() and (error := working.exception()) is not None:
        raise error
