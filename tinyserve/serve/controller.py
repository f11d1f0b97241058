"""The controller: workers register with it, clients ask it for models, addresses and streams.

`Controller` decides and remembers; controller_app.py puts it behind HTTP. Run it with
`python -m tinyserve.serve.controller` or `tinyserve controller`.
"""

import argparse
import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyserve.serve.controller_app import create_app
from tinyserve.serve.dispatch import METHODS, find_method
from tinyserve.serve.heartbeat import HeartBeatSettings
from tinyserve.serve.http_server import PortError, address_of, bind, serve
from tinyserve.serve.messages import Registration, WorkerStatus
from tinyserve.serve.probe import ProbeError, ask_statuses
from tinyserve.serve.proxy import ProxyTimeouts
from tinyserve.serve.registry import Registry, Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControllerSettings:
    heart_beat: HeartBeatSettings = field(default_factory=HeartBeatSettings)
    timeouts: ProxyTimeouts = field(default_factory=ProxyTimeouts)
    probe_seconds: float = 5.0  # a worker has this long to tell its status
    lookup_seconds: float = 30.0  # an address handed out counts as a request at most this long
    max_body_bytes: int = 64 << 20  # of one request; images travel inside
    worker_token: str | None = None  # the secret that workers must show; None: anybody may register


class Controller:
    """The table of workers and the choice among them.

    One event loop or one thread may use it. The methods named as in LLaVA's controller are synchronous; two of them ask
    workers over the network and so wait: inside an event loop, await `register` and `refresh` instead.
    """

    def __init__(self, dispatch_method: str, settings: ControllerSettings | None = None) -> None:
        """
        Args:
            dispatch_method: "lottery" or "shortest_queue".

        Raises:
            ValueError: any other name.
        """
        self.settings = settings or ControllerSettings()
        self.registry = Registry(time.monotonic, self.settings.lookup_seconds)
        self._method = find_method(dispatch_method)
        self._random = random.Random()
        self._refreshing: asyncio.Task[None] | None = None

    def register_worker(
        self, worker_name: str, check_heart_beat: bool, worker_status: dict[str, Any] | None, multimodal: bool = False
    ) -> bool:
        """Adds or updates a worker; without a status the worker is asked for it.

        Returns:
            False when the worker was asked and did not answer.

        Raises:
            FieldError: an argument is malformed.
        """
        message = {"worker_name": worker_name, "check_heart_beat": check_heart_beat, "worker_status": worker_status}
        registration = Registration.parse({**message, "multimodal": multimodal})
        if registration.worker_status is not None:
            self._add(registration, registration.worker_status)
            return True
        try:
            asyncio.run(self.register(registration))
        except ProbeError as error:
            logger.warning("not registered: %s", error)
            return False
        return True

    async def register(self, registration: Registration) -> None:
        """Adds or updates a worker.

        Raises:
            ProbeError: it came without a status and the worker did not tell one.
        """
        status = registration.worker_status
        if status is None:
            (answer,) = await ask_statuses([registration.worker_name], self.settings.probe_seconds)
            if isinstance(answer, ProbeError):
                raise answer
            status = answer
        self._add(registration, status)

    def _add(self, registration: Registration, status: WorkerStatus) -> None:
        name, multimodal = registration.worker_name, registration.multimodal
        self.registry.register(name, registration.check_heart_beat, status, multimodal)

    def remove_worker(self, worker_name: str) -> None:
        """Forgets a worker; nothing happens when it is unknown."""
        self.registry.remove(worker_name)

    def list_models(self) -> list[str]:
        return self.registry.model_names()

    def list_multimodal_models(self) -> list[str]:
        return self.registry.model_names(multimodal=True)

    def list_language_models(self) -> list[str]:
        return self.registry.model_names(multimodal=False)

    def get_worker_address(self, model_name: str) -> str:
        """Address of the worker that should get the next request; "" when nobody serves the model."""
        worker = self.registry.choose(model_name, self._method, self._random)
        if worker is None:
            return ""
        self.registry.count_lookup(worker)
        return worker.name

    def choose(self, model_name: str, excluded: Collection[str] = ()) -> Worker | None:
        """The worker for a stream that runs through this controller, without counting it.

        When all workers of the model are suspended one of them is tried all the same: it may have come back, and the
        client is owed the reason if it has not.
        """
        worker = self.registry.choose(model_name, self._method, self._random, excluded)
        return worker or self.registry.choose(model_name, self._method, self._random, excluded, suspended=True)

    def receive_heart_beat(self, worker_name: str, queue_length: int) -> bool:
        """False tells the worker to register again."""
        return self.registry.heart_beat(worker_name, queue_length)

    def get_status(self) -> dict[str, Any]:
        """All workers as if they were one, so that a controller can register with another one."""
        now = self.registry.clock()
        workers = [worker for worker in self.registry if not worker.suspended]
        return {
            "model_names": self.list_models(),
            "speed": sum(worker.status.speed for worker in workers),
            "queue_length": sum(worker.queue_length(now) for worker in workers),
        }

    def refresh_all_workers(self) -> None:
        """Asks every worker for its status and removes those that do not answer."""
        asyncio.run(self.refresh())

    async def refresh(self) -> None:
        """Like `refresh_all_workers`. All are asked at once and stay in the table meanwhile; calls share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._ask(list(self.registry), remove_silent=True))
        await asyncio.shield(self._refreshing)

    def sweep(self) -> None:
        """What is done from time to time: workers whose heart beats stopped go."""
        self.registry.expire(self.settings.heart_beat.expiry)

    async def check(self, worker: Worker) -> None:
        """Asks the worker for its status: it is suspended unless it answers, and in use again when it does."""
        await self._ask([worker], remove_silent=False)

    async def _ask(self, workers: Sequence[Worker], remove_silent: bool) -> None:
        asked_at = self.registry.clock()
        answers = await ask_statuses([worker.name for worker in workers], self.settings.probe_seconds)
        for worker, answer in zip(workers, answers, strict=True):
            if self.registry.get(worker.name) is not worker:
                continue  # removed meanwhile
            if not isinstance(answer, ProbeError):
                self.registry.register(worker.name, worker.check_heart_beat, answer, worker.multimodal)
            elif worker.last_seen > asked_at:
                continue  # it reported meanwhile, so it lives
            elif remove_silent:
                self.registry.remove(worker.name)
                logger.warning("worker %s removed: %s", worker.name, answer)
            else:
                self.registry.suspend(worker, str(answer))


def _parser() -> argparse.ArgumentParser:
    default = ControllerSettings()
    beat, timeouts = default.heart_beat, default.timeouts
    parser = argparse.ArgumentParser(description="Start a controller.", allow_abbrev=False)
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=21001, help="default: %(default)s")
    parser.add_argument("--dispatch-method", choices=list(METHODS), default="shortest_queue")
    parser.add_argument(
        "--worker-token",
        default=os.environ.get("TINYSERVE_WORKER_TOKEN"),
        help="secret that workers must show to register (default: the variable TINYSERVE_WORKER_TOKEN, else none)",
    )
    for flag, value, what in (
        ("--heart-beat-sweep", beat.sweep, "seconds between two looks for silent workers"),
        ("--heart-beat-expiration", beat.expiry, "seconds of silence after which a worker is removed"),
        ("--connect-timeout", timeouts.connect, "seconds to reach a worker; then another one is tried"),
        ("--first-token-timeout", timeouts.first_record, "seconds a worker may take until its first record"),
        ("--next-token-timeout", timeouts.next_record, "seconds a worker may be silent inside a stream"),
        ("--probe-timeout", default.probe_seconds, "seconds a worker may take to tell its status"),
    ):
        parser.add_argument(flag, type=_seconds, default=value, help=f"{what} (default: %(default)g)")
    parser.add_argument("--max-body-bytes", type=_positive, default=default.max_body_bytes, help="default: %(default)s")
    parser.add_argument("--grace-period", type=_positive, default=10, help="seconds for streams to end at SIGTERM")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e7:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Runs a controller until SIGINT or SIGTERM; 1 when it cannot listen."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    settings = ControllerSettings(
        heart_beat=HeartBeatSettings(args.heart_beat_sweep, args.heart_beat_expiration),
        timeouts=ProxyTimeouts(args.connect_timeout, args.first_token_timeout, args.next_token_timeout),
        probe_seconds=args.probe_timeout,
        max_body_bytes=args.max_body_bytes,
        worker_token=args.worker_token or None,
    )
    try:
        sockets = bind(args.host, args.port)
    except PortError as error:
        print(f"tinyserve controller: {error}", file=sys.stderr)
        return 1
    logger.info("controller on %s, dispatch by %s", address_of(args.host, sockets), args.dispatch_method)
    serve(create_app(Controller(args.dispatch_method, settings)), sockets, args.grace_period)
    return 0


if __name__ == "__main__":
    sys.exit(main())
