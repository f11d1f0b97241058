"""The controller's routes: LLaVA's seven, FastChat's two lists and its connection test, and /health.

Turns HTTP into calls of `Controller` and mistakes into 4xx replies with a JSON body. Decides nothing about workers.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from tinyserve.serve.body import BadBody, error_body, parse_member, parse_object, read_body
from tinyserve.serve.heartbeat import sweep_forever
from tinyserve.serve.messages import FieldError, HeartBeat, Registration, parse_model
from tinyserve.serve.probe import ProbeError
from tinyserve.serve.proxy import HOPS_HEADER, ProxyRequest, StreamProxy
from tinyserve.serve.registry import Worker
from tinyserve.serve.wire import ErrorCode

if TYPE_CHECKING:  # controller.py imports this module
    from tinyserve.serve.controller import Controller

logger = logging.getLogger(__name__)

MAX_CONTROL_BODY_BYTES = 1 << 20
FIRST_RECHECK_SECONDS = 0.5  # after a worker could not be reached; doubles up to the time between two sweeps
MAX_HOPS = 8  # controllers behind controllers; more must be a ring


class _Forbidden(Exception):
    """The worker's secret is missing or wrong."""


def create_app(controller: "Controller") -> FastAPI:
    """The ASGI app of one controller; it watches the workers as long as it runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _Services(controller) as services:
            app.state.services = services
            yield

    app = FastAPI(title="tinyserve controller", lifespan=lifespan)
    _add_stream_route(app, controller)  # first: routes are tried in this order
    _add_control_routes(app, controller)
    _add_error_handlers(app)
    return app


class _Services:
    """What needs the event loop: the proxy, the watch over heart beats, probes of workers under suspicion."""

    def __init__(self, controller: "Controller") -> None:
        self._controller = controller
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by worker name; "" is the watch, which has none

    async def __aenter__(self) -> "_Services":
        controller = self._controller
        self.proxy = StreamProxy(controller.registry, controller.choose, self._suspect, controller.settings.timeouts)
        watch = sweep_forever(controller.sweep, controller.settings.heart_beat.sweep)
        self._tasks[""] = asyncio.ensure_future(watch)
        return self

    async def __aexit__(self, *exception: object) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.proxy.close()

    def _suspect(self, worker: Worker) -> None:
        """Asks the worker whether it lives, again and again until it does; one such watch per worker."""
        if worker.name not in self._tasks:
            task = self._tasks[worker.name] = asyncio.ensure_future(self._watch(worker))
            task.add_done_callback(lambda _: self._tasks.pop(worker.name, None))

    async def _watch(self, worker: Worker) -> None:
        # Soon at first: upstream's workers register a moment before they listen.
        wait_seconds = FIRST_RECHECK_SECONDS
        await self._controller.check(worker)
        while worker.suspended and self._controller.registry.get(worker.name) is worker:
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, self._controller.settings.heart_beat.sweep)
            await self._controller.check(worker)


def _add_control_routes(app: FastAPI, controller: "Controller") -> None:
    @app.post("/register_worker")
    async def register_worker(request: Request) -> None:
        data = await _read_object(request)
        _check_token(controller, request, data)
        await controller.register(Registration.parse(data))

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        data = await _read_object(request)
        _check_token(controller, request, data)
        beat = HeartBeat.parse(data)
        return {"exist": controller.receive_heart_beat(beat.worker_name, beat.queue_length)}

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await controller.refresh()

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": controller.list_models()}

    @app.post("/list_multimodal_models")
    async def list_multimodal_models() -> dict[str, list[str]]:
        return {"models": controller.list_multimodal_models()}

    @app.post("/list_language_models")
    async def list_language_models() -> dict[str, list[str]]:
        return {"models": controller.list_language_models()}

    @app.post("/get_worker_address")
    async def get_worker_address(request: Request) -> dict[str, str]:
        return {"address": controller.get_worker_address(parse_model(await _read_object(request)))}

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return controller.get_status()

    @app.get("/test_connection")
    async def test_connection() -> str:
        return "success"

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "workers": len(controller.registry), "models": controller.list_models()}


def _add_stream_route(app: FastAPI, controller: "Controller") -> None:
    async def worker_generate_stream(request: Request) -> Response:
        body = await read_body(request, controller.settings.max_body_bytes)
        model = parse_model(parse_member(body, "model"))
        hops = request.headers.get(HOPS_HEADER, "0")
        if not hops.isdecimal() or int(hops) >= MAX_HOPS:
            raise FieldError(HOPS_HEADER, f"must be below {MAX_HOPS}, got {hops[:20]!r}: do controllers form a ring?")
        return app.state.services.proxy.respond(ProxyRequest(model, body, int(hops)))

    # Starlette's route: FastAPI's costs another 0.2 ms per request, which counts when hundreds arrive at once.
    app.add_route("/worker_generate_stream", worker_generate_stream, methods=["POST"])


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(BadBody)
    async def bad_body(request: Request, error: BadBody) -> JSONResponse:
        return JSONResponse(error_body(str(error)), error.status)

    @app.exception_handler(FieldError)
    async def bad_field(request: Request, error: FieldError) -> JSONResponse:
        return JSONResponse(error_body(str(error), error.field), 422)

    @app.exception_handler(ProbeError)
    async def unreachable(request: Request, error: ProbeError) -> JSONResponse:
        return JSONResponse(error_body(f"worker_name: {error}", "worker_name"), 400)

    @app.exception_handler(_Forbidden)
    async def forbidden(request: Request, error: _Forbidden) -> JSONResponse:
        return JSONResponse(error_body(str(error), "worker_token", ErrorCode.AUTHENTICATION), 401)


async def _read_object(request: Request) -> dict[str, Any]:
    return parse_object(await read_body(request, MAX_CONTROL_BODY_BYTES))


def _check_token(controller: "Controller", request: Request, data: dict[str, Any]) -> None:
    expected = controller.settings.worker_token
    if expected is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ") or data.get("worker_token")
    if not isinstance(given, str) or not hmac.compare_digest(_bytes(given), _bytes(expected)):
        logger.warning("refused a worker without the right token, from %s", request.client and request.client.host)
        raise _Forbidden("this controller takes workers only with its --worker-token; none or a wrong one came")


def _bytes(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")
